"""Which column of a user's own file plays which part: as told, or guessed from its name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuserec.errors import DataError

# Names in English, then in German, French, Spanish, Italian, Portuguese, Dutch, Polish, Swedish, Russian, Japanese and
# Chinese; without spaces and punctuation.
_USER: Final = (
    "user userid uid username useremail customer customerid customeremail client clientid visitor visitorid "
    "member memberid account accountid email session sessionid customernumber customerno usernumber "
    "benutzer benutzerid nutzer nutzerid kunde kundenid kundennummer kundennr kundeid besucher "
    "utilisateur utilisateurid idutilisateur idclient numeroclient membre "
    "usuario usuarioid idusuario cliente clienteid idcliente codigocliente "
    "utente utenteid idutente codicecliente utilizador idutilizador codigodocliente "
    "gebruiker gebruikerid klant klantid klantnummer uzytkownik iduzytkownika klient klientid idklienta "
    "anvandare anvandarid kund kundid kundnummer "
    "пользователь клиент ユーザー ユーザーid 顧客 顧客id 用户 用户id 客户 客户id"
)
_ITEM: Final = (
    "item itemid iid product productid sku article articleid movie movieid track trackid song songid news newsid "
    "productcode productnumber itemcode itemnumber asin video videoid game gameid book bookid "
    "artikel artikelid artikelnummer artikelnr produkt produktid produktnummer artnr "
    "produit produitid idproduit refproduit referenceproduit idarticle codeproduit "
    "producto productoid idproducto articulo articuloid idarticulo codigoproducto "
    "prodotto prodottoid idprodotto articolo idarticolo codiceprodotto produto produtoid idproduto codigoproduto "
    "artigo produktu idproduktu towar idtowaru vara varaid film filmid "
    "товар продукт 商品 商品id 商品コード 商品番号 产品 产品id"
)


@dataclass(frozen=True)
class Role:
    """A part that a column can play.

    Attributes:
        names: what such columns are called, lower case and without accents and punctuation, likeliest first.
        required: whether a file without one is refused.
        option: of the command, that says which column it is.
    """

    names: tuple[str, ...]
    required: bool = False
    option: str = ""


def _plain(name: str) -> str:
    """Lower case, without accents, spaces and punctuation."""
    decomposed = unicodedata.normalize("NFKD", name)
    letters = unicodedata.normalize("NFC", "".join(char for char in decomposed if unicodedata.category(char) != "Mn"))
    return re.sub(r"[\W_]+", "", letters).lower()


def _role(names: str, *, required: bool = False, option: str = "") -> Role:
    return Role(tuple(map(_plain, names.split())), required, option)


INTERACTION_ROLES: Final = {
    "user": _role(_USER, required=True),
    "item": _role(_ITEM, required=True),
    "time": _role(
        "timestamp time ts eventtime eventtimestamp datetime date createdat created orderdate purchasedat purchasedate "
        "zeit zeitpunkt zeitstempel datum bestelldatum kaufdatum uhrzeit horodatage temps heure datecommande dateachat "
        "fecha fechahora fechapedido fechacompra hora data dataora dataordine datapedido datahora datacompra tijd "
        "tijdstip besteldatum czas dataczas datazamowienia tidpunkt время дата 日時 日付 注文日 时间 时间戳 日期",
        required=True,
    ),
    "rating": _role(
        "rating stars score bewertung sterne evaluation etoiles calificacion puntuacion valoracion valutazione "
        "voto avaliacao beoordeling waardering ocena betyg рейтинг оценка 評価 评分"
    ),
}  # fmt: skip
ITEM_ROLES: Final = {
    "item": _role(f"{_ITEM} id", required=True, option="items-item"),
    "title": _role(
        "title name itemname productname producttitle itemtitle headline titel bezeichnung artikelname produktname "
        "artikelbezeichnung produktbezeichnung nom titre intitule libelle nomproduit titulo nombre nombreproducto "
        "titolo nome nomeprodotto nomeproduto naam productnaam tytul nazwa nazwaproduktu namn "
        "название タイトル 商品名 标题 名称"
    ),
    "text": _role(
        "text description desc body content summary plot abstract beschreibung text inhalt texte contenu resume "
        "texto descripcion contenido resumen testo descrizione contenuto descricao conteudo resumo tekst beschrijving "
        "omschrijving opis beskrivning описание 説明 描述"
    ),
    "category": _role(
        "category categories genre genres tags tag department class kategorie kategorien rubrik warengruppe categorie "
        "categoria categorias generos genero categorieen kategoria kategorier категория カテゴリ 类别 分类"
    ),
    "year": _role("year releaseyear releasedate published jahr erscheinungsjahr annee ano anno jaar rok ar год 年"),
}  # fmt: skip
USER_ROLES: Final = {"user": _role(f"{_USER} id", required=True, option="users-user")}


def choose_columns(
    path: Path, found: Sequence[str], roles: Mapping[str, Role], told: Mapping[str, str]
) -> dict[str, str]:
    """Return the column of each role that has one.

    Args:
        path: the file, for messages.
        found: the names of its columns.
        roles: what to look for.
        told: column by role, where the user said; an empty name says that there is none.

    Raises:
        DataError: if a required role finds no column, or a column that was told is not there.
    """
    chosen: dict[str, str] = {}
    taken = {told[role] for role in roles if role in told}
    for role, wanted in roles.items():
        option = f"--{wanted.option or role}-column"
        if role in told:
            name = told[role] or None
            if name is not None and name not in found:
                raise DataError(f"{path}: no column {name!r} ({option}); found {', '.join(found)}")
        else:
            name = _guess([column for column in found if column not in {*chosen.values(), *taken}], wanted)
        if name is not None:
            chosen[role] = name
        elif wanted.required:
            raise DataError(f"{path}: no column is named like the {role}; found {', '.join(found)}; "
                            f"give {option} NAME")  # fmt: skip
    return chosen


def _guess(found: Sequence[str], role: Role) -> str | None:
    plain = {_plain(column): column for column in reversed(found)}  # the first of a name wins
    return next((plain[name] for name in role.names if name in plain), None)
