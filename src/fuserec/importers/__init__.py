"""Models that other libraries trained, as checkpoints: export, evaluate, serve and recommend treat them like our own.

matching         rows of a foreign table <-> the ids of a data folder; the checkpoint made of both
hf               encoders of sentence-transformers and transformers -> text
sentence         what a folder of sentence-transformers does around its transformer
implicit         factors of implicit -> mf
npz              arrays out of a zip file of anybody's making
recbole          BPR, SASRec and GRU4Rec of RecBole -> mf, recbole-sasrec, recbole-gru4rec
_recbole_reader  the process that opens RecBole's pickle
"""
