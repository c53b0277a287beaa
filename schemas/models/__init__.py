"""The models, by the name that stands in the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from schemas.config import ModelConfig, the_one
from schemas.errors import ConfigError
from schemas.models.afm import AFM
from schemas.models.base import RowModel, Sides
from schemas.models.dcn import DCN, DCNLinear, DCNv2, DCNv2Stacked
from schemas.models.deepfm import DeepFM
from schemas.models.ffm import FFM, FFMLinear
from schemas.models.ffm_stats import FFMStats
from schemas.models.fm import FM
from schemas.models.fm_dnn import FMDNN
from schemas.models.fnn import DNN, FNN
from schemas.models.layers import Mlp
from schemas.models.lr import LR
from schemas.models.nfm import NFM
from schemas.models.pnn import PNN, PNNPairs
from schemas.models.wide_deep import LRDNN, WideDeep

MODELS: Mapping[str, Callable[..., RowModel]] = MappingProxyType({
    "lr": LR, "fm": FM, "ffm": FFM, "ffm_linear": FFMLinear, "afm": AFM, "nfm": NFM, "fnn": FNN, "dnn": DNN,
    "pnn": PNN, "pnn_pairs": PNNPairs, "lr_dnn": LRDNN, "wide_deep": WideDeep, "fm_dnn": FMDNN, "deepfm": DeepFM,
    "dcn": DCN, "dcn_linear": DCNLinear, "dcn_v2": DCNv2, "dcn_v2_stacked": DCNv2Stacked,
    "ffm_stats": FFMStats,
})


def build(
    config: ModelConfig, fields: int, crosses: int = 0, logs: Sequence[int] = (), sides: Sides = ()
) -> RowModel:
    """The model as its seed makes it, on the CPU. crosses: how many the schema has; not every model takes them.
    logs: columns whose values are numbers beside the rows, and multiply none. sides: the fields of each cross, for models
    that read its counts.

    Raises ConfigError for an architecture that does not exist.
    """
    kind = the_one("model.architecture", config.architecture, MODELS)
    if fields < 1:
        raise ConfigError(f"model.schema={config.schema}: a model needs at least one field")
    model: RowModel
    if kind in (DeepFM, FFMStats):
        model = kind(config, fields, logs, sides)
    else:
        model = kind(config, fields)
        model.crosses = crosses if model.takes_crosses else 0
    if config.heads > 1 and not any(isinstance(module, Mlp) for module in model.modules()):
        raise ConfigError(f"model.heads={config.heads}: {config.architecture} has no network of which there could be several")
    model.beside = tuple(logs)
    return model


__all__ = ["MODELS", "RowModel", "build"]
