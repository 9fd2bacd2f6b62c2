"""Architectures and the checkpoint folder; nothing about training.

two_tower   contrastive two-tower over ids, histories and item features
attention   the causal self-attention it reads histories with
retriever   what an exporter needs of such an architecture
registry    architecture name -> configuration and module
checkpoint  a trained model on disk: JSON, safetensors and Parquet, never pickle
"""
