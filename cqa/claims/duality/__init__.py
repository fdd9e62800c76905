"""Whether reading and writing are one thing: PMI both ways, draws against scores, transfer."""
