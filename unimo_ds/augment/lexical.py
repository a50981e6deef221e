"""The captions of other images that share most words with a caption, by TF-IDF.

Such captions speak of the same kind of things in another arrangement, which makes them hard to tell from the true one
(UNIMO's hard negatives at sentence level). The counting is scikit-learn's, the products are scipy's, both sparse.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer

# N captions, W words of the vocabulary, B captions of a query, C captions of a block of columns, K nearest

_LOW = 0xFFFFFFFF


class LexicalIndex:
    """The TF-IDF vectors of N captions, and which image each belongs to.

    Memory: 16 bytes for each distinct word of each caption, and for one query at most 8 B C bytes, whatever N is. For a
    million captions of ten distinct words that is 160 MB, and 134 MB for a query of B = 256 captions.

    Words that occur in more than `most_captions` captions are left out: they say next to nothing of a caption, and a query
    takes as many steps as its words have occurrences. A caption that has no other words has no near ones.

    Args:
        texts: the captions.
        images_N: integers [N]; captions of the same number belong to the same image.
        most_captions: see above.
        columns: C, captions that a query is compared with at once; does not change results.
    """

    def __init__(
        self, texts: Sequence[str], images_N: npt.NDArray[np.int32], most_captions: int = 50_000, columns: int = 1 << 16
    ) -> None:
        vectorizer = TfidfVectorizer(dtype=np.float32, max_df=most_captions if len(texts) > most_captions else 1.0)
        try:
            vectors_NW = csr_array(vectorizer.fit_transform(texts))
        except ValueError:  # scikit-learn's word for: not one caption has a word that is left in
            vectors_NW = csr_array((len(texts), 1), dtype=np.float32)
        starts = range(0, len(texts), columns)
        self._vectors_NW, self._images_N = vectors_NW, images_N
        self._blocks = [(start, csr_array(vectors_NW[start : start + columns].T)) for start in starts]  # each [W, C]

    def nearest(self, first: int, last: int, count: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """The K = `count` nearest captions of other images to captions `first` to `last - 1`; `count` is 1 or more.

        Returns:
            Numbers [B, K] of captions, best first and of equally near ones the lower number first, -1 where there are no
            more that share a word; and their cosines [B, K], 0 there.
        """
        # A positive float's bits, read as an integer, sort as the float does: above them the score, below the number, so
        # that keys are distinct and the best K do not depend on the order in which blocks are seen. 0: none.
        best_BK = np.zeros((last - first, count), np.uint64)
        queries_BW = self._vectors_NW[first:last]
        for start, block_WC in self._blocks:
            scores_BC = csr_array(queries_BW @ block_WC)
            for row in range(last - first):
                held = slice(scores_BC.indptr[row], scores_BC.indptr[row + 1])
                numbers = scores_BC.indices[held] + np.int64(start)
                keys = scores_BC.data[held].view(np.uint32).astype(np.uint64) << np.uint64(32) | (_LOW - numbers).astype(
                    np.uint64
                )
                keys = keys[self._images_N[numbers] != self._images_N[first + row]]
                best_BK[row] = np.partition(np.concatenate([best_BK[row], keys]), -count)[-count:]
        best_BK = np.sort(best_BK, axis=1)[:, ::-1]
        scores_BK = (best_BK >> np.uint64(32)).astype(np.uint32).view(np.float32)
        numbers_BK = np.where(best_BK > 0, _LOW - (best_BK & np.uint64(_LOW)).astype(np.int64), -1).astype(np.int32)
        return numbers_BK, scores_BK
