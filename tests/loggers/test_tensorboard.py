"""The tab HPARAMS of TensorBoard, read by TensorBoard's own plugin."""

import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context

from sr_lightning.loggers import Outcome, TensorBoard
from tests.helpers import compose

ENDED = {"psnr": 33.0, "gain": 2.5, "best_step": 20}


def settings(*overrides):
    cfg = compose("choices={data: t91, model: net, experiment: null}", "data=t91", *overrides)
    return OmegaConf.to_container(cfg, resolve=True)


def scores(psnr):
    return {"dataset": "Set5", "image": "mean", "scale": 2, "model": "net", "protocol": "y", "psnr_y": psnr}


@pytest.fixture
def tab(tmp_path):
    """Names of settings and values of each run in the tab, after two runs have ended and one has not."""
    for seed, psnr in ((0, 32.0), (1, 32.5), (2, None)):
        logger = TensorBoard(str(tmp_path / str(seed)), name=None, version="tensorboard", default_hp_metric=False)
        logger.log_hyperparams(settings(f"seed={seed}"))
        logger.log_metrics({"val/psnr": 30.0 + seed}, step=10)
        if psnr is not None:
            logger.log_outcome(Outcome([scores(psnr)], [], [], ENDED))
        logger.finalize("success")
    runs = EventMultiplexer()
    runs.AddRunsFromDirectory(str(tmp_path))
    runs.Reload()
    context, request = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(tmp_path)))), RequestContext()
    metadata = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(request, "", True, metadata, [])
    statuses = [api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING]
    wanted = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=9, allowed_statuses=statuses)
    wanted.col_params.add(hparam="seed")
    groups = list_session_groups.Handler(request, context, "", wanted).run().session_groups
    values = {
        group.hparams["seed"].number_value: {value.name.tag: value.value for value in group.metric_values}
        | {"status": group.sessions[0].status}
        for group in groups
    }
    return [info.name for info in experiment.hparam_infos], values


def test_runs_are_compared_by_settings_and_final_scores(tab):
    names, values = tab
    assert {"seed", "model.optimizer.lr", "model.network._target_", "max_steps"} <= set(names)
    assert not {"run_dir", "cache_dir", "data_root", "sweep"} & set(names)
    assert {seed: run.get("test/Set5/psnr_y") for seed, run in values.items()} == {0: 32.0, 1: 32.5, 2: None}
    assert values[1]["psnr"] == 33.0 and values[1]["gain"] == 2.5
    assert values[2]["val/psnr"] == 32.0
    ended = api_pb2.STATUS_SUCCESS
    assert [values[seed]["status"] == ended for seed in range(3)] == [True, True, False]
