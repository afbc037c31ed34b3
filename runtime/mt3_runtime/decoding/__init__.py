"""Features to tokens: continuous batching, search, logit masks and grammars."""
