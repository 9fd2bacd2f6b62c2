"""The search operation: pool the queries, score every row, drop the filtered ones, keep the k best."""
