"""Contrastive fine-tuning of a text embedder: the trainer `contrastive` of app.yaml."""
