"""Files -> rows of tokens: read, tokenise, split off validation, pack, draw. Knows no model and no checkpoint."""

from difflm.data.documents import Document
from difflm.data.fitting import best_fit, next_fit
from difflm.data.loader import Draw, Loader, LoaderState, RowOrder
from difflm.data.packing import pack, pack_store
from difflm.data.rows import PackCounts, PackedRows, PackOptions
from difflm.data.sources import list_files, read_documents
from difflm.data.splitting import check_disjoint, split_validation
from difflm.data.store import TokenStore
from difflm.data.tokens import TokenDocument, tokenise

__all__ = [
    "Document",
    "Draw",
    "Loader",
    "LoaderState",
    "PackCounts",
    "PackOptions",
    "PackedRows",
    "RowOrder",
    "TokenDocument",
    "TokenStore",
    "best_fit",
    "check_disjoint",
    "list_files",
    "next_fit",
    "pack",
    "pack_store",
    "read_documents",
    "split_validation",
    "tokenise",
]
