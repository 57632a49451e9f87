"""Text -> rows of tokens: read, tokenise, split off validation, pack, draw. Knows no model and no checkpoint."""

from difflm.data.loader import Draw, Loader, LoaderState, RowOrder
from difflm.data.packing import PackCounts, PackedRows, best_fit, pack
from difflm.data.sources import Document, check_disjoint, list_files, read_documents, split_validation
from difflm.data.tokens import TokenDocument, tokenise

__all__ = [
    "Document",
    "Draw",
    "Loader",
    "LoaderState",
    "PackCounts",
    "PackedRows",
    "RowOrder",
    "TokenDocument",
    "best_fit",
    "check_disjoint",
    "list_files",
    "pack",
    "read_documents",
    "split_validation",
    "tokenise",
]
