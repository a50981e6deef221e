"""From files to packed batches: the regions store, corpora, data order, masking, packing, loading."""
