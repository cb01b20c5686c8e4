"""Networks in the formats of others: files of weights, and what runs them."""
