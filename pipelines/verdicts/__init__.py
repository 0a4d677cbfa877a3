"""Judgements over landed tables. Pure rules; the evidence is stored with the verdict."""
