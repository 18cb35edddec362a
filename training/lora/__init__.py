"""Supervised fine-tuning of a causal language model with a LoRA adapter: the trainer `lora` of app.yaml."""
