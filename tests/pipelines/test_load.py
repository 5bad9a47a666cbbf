import json

import pytest

from bitsfusion.errors import InputError
from bitsfusion.pipelines.load import pipeline_folder


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        pipeline_folder(str(tmp_path / "missing"))


def test_a_folder_that_is_no_pipeline(tmp_path):
    with pytest.raises(InputError, match=r"without model_index\.json"):
        pipeline_folder(str(tmp_path))


def test_a_pipeline_without_a_unet(tmp_path):
    from bitsfusion.pipelines.load import load_pipeline

    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(InputError, match="got a FluxPipeline without a UNet"):
        load_pipeline(str(tmp_path))
