"""Tables: reading, splitting, cleaning, features kept on disk, batches."""
