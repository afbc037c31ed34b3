"""Audio containers byte by byte: what libsndfile is handed, so that files are read whole."""
