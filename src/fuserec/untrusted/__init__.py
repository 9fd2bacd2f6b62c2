"""Files that somebody else may have written: looked over before anything is made of them, refused with the reason.

documents   texts and JSON: size, UTF-8, depth, repeated names, numbers that fit 64 bits
tensors     safetensors: the header against the size of the file
parquet     Parquet: the footer and the pages against the size of the file, and what they would take in memory
tables      Parquet read: columns, types and rows as expected

Whoever reads says which error is raised; its message names the file, what came and what was expected. That the bytes
are those that were published is another matter: hashes tell, in `manifest` and `models.checkpoint`.
"""
