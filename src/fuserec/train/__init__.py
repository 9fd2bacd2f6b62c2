"""From a data folder to a checkpoint.

movielens   writes MovieLens-100K as a data folder
tables      one table, Parquet or CSV, brought to a schema or refused
sources     a table in anybody's file, Parquet or CSV, opened lazily
importing   a user's own files as a data folder; columns, identities and times are its parts
feedback    what users did with what they were shown, as the next data; served and actions are its parts
data        a data folder: interactions and items that fit each other
split       time-ordered leave-one-out
ragged      users' sequences in two flat arrays
features    genres, title words and years of the items as tensors
windows     training batches
negatives   sampling probabilities, and what is no negative
losses      InfoNCE with logQ correction
metrics     HR, NDCG, MRR, coverage over the whole catalogue
evaluation  the protocol: what is ranked, what is left out
questions   what is asked of whatever is evaluated, and what it answers
answering   a checkpoint answers
report      metrics with intervals, from these modules:
bootstrap   intervals over users
exposure    popularity groups, coverage, Gini, novelty
groups      groups of users
explain     which items of a history moved a score
batches     what a loader has to be; the part of a batch that one of several devices takes
run         how a run is carried out: Lightning's options, privacy
loop        the Lightning loop
selection   best weights, early stopping
progress    progress bar, TensorBoard
resume      the state of an unfinished run
pruning     takes hidden units out while training
privacy     differentially private training of users
two_tower   trains the two-tower
recipes     recipe names, as the command line knows them
"""
