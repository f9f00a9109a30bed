"""Images: checking, decoding and augmenting, from encoded bytes to uint8 pixels."""
