"""The five providers, played with their real manners. Knows nothing of how Reservoir reads what it sends."""
