"""What the card is made of: front matter, words from manifest and evidence, and code that reads the set."""
