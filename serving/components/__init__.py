"""What each component is: its files, its fingerprint, how it is built. Shared with training, which builds them."""
