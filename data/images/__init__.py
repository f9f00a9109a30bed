"""From the bytes of an image to augmented pixels."""
