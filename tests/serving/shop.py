"""A small synthetic shop, as a shopkeeper would export it: e-mail addresses, SKUs, dates, categories.

Products come in collections. In a session a customer buys through a collection in its order, mostly, from a random
place of it, and keeps to a few collections; popular collections are visited more. So what comes next can be learned
from the sequence, and popularity alone says little.
"""

from __future__ import annotations

import csv
import datetime
from pathlib import Path

import numpy as np

N_CUSTOMERS, N_COLLECTIONS, COLLECTION_SIZE = 200, 10, 12
SESSIONS, SESSION_LENGTH = 6, 6
WANDERS = 0.1  # how often a customer takes any product in place of the next one
CATEGORIES = ("Kitchen", "Garden", "Lighting", "Textiles", "Office")
OPENING = datetime.datetime(2024, 1, 1, 9, tzinfo=datetime.UTC)


def sku(product: int) -> str:
    """SKUs whose order says nothing: the numbering of ids must not help."""
    return f"{CATEGORIES[product // COLLECTION_SIZE % len(CATEGORIES)][:2].upper()}-{product * 7919 % 10_007:05d}"


def customer(number: int) -> str:
    return f"customer{number * 7 % N_CUSTOMERS}@shop.example"


def write_shop(folder: Path, seed: int = 0) -> None:
    """Write orders.csv (customer_email, sku, ordered at, ...) and products.csv into `folder`."""
    generator = np.random.default_rng(seed)
    visits = 1.0 / np.arange(1, N_COLLECTIONS + 1)
    rows = []
    for number in range(N_CUSTOMERS):
        liked = generator.choice(N_COLLECTIONS, size=3, replace=False, p=visits / visits.sum())
        day = generator.integers(0, 200)
        for _ in range(SESSIONS):
            collection, place = generator.choice(liked), generator.integers(0, COLLECTION_SIZE)
            day += generator.integers(1, 20)
            for step in range(SESSION_LENGTH):
                product = collection * COLLECTION_SIZE + (place + step) % COLLECTION_SIZE
                if generator.random() < WANDERS:
                    product = generator.integers(0, N_COLLECTIONS * COLLECTION_SIZE)
                when = OPENING + datetime.timedelta(days=int(day), minutes=5 * step)
                rows.append((when, customer(number), sku(int(product))))
    rows.sort(key=lambda row: row[0])
    with (folder / "orders.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["order_date", "customer_email", "sku"])
        writer.writerows((when.isoformat(), who, what) for when, who, what in rows)
    with (folder / "products.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sku", "product_name", "category", "description"])
        for product in range(N_COLLECTIONS * COLLECTION_SIZE):
            collection, place = divmod(product, COLLECTION_SIZE)
            category = CATEGORIES[collection % len(CATEGORIES)]
            name = f"{category} piece {place + 1} of collection {collection + 1}"
            writer.writerow([sku(product), name, f"{category}|Collection {collection + 1}", f"{name}, made to match."])
