"""What people read: one self-contained HTML page per run."""
