"""What tests share: small problems written by hand, and random ones."""
