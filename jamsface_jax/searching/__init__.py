"""Names of people in images: who of a gallery is nearest."""
