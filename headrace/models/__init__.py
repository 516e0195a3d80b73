"""Models from files: readers that believe nothing, families as rows of data, the catalogue of what can be opened."""
