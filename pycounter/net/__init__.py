"""What every listening part shares: TLS, tokens, who may listen where."""
