"""Networks: encoders (the table is `ENCODERS`), heads and decoders."""
