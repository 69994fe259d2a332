"""The native models' own suites where the tests of the library have them, else the same tests on native classes."""

import contextlib
import unittest

from scaffold import LAYER_NORM, ImageTextTester, VisionTester
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, InternVLVisionModel


try:
    from tests.models.internvl.test_modeling_internvl import InternVLModelTest as NativeInternVLTest
except ImportError:

    class NativeInternVLTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
        all_model_classes = (InternVLForConditionalGeneration,)
        all_generative_model_classes = (InternVLForConditionalGeneration,)
        _is_composite = True

        def setUp(self):
            text, vision = {"model_type": "qwen2"}, {"use_absolute_position_embeddings": True}
            settings = {"image_seq_length": 4}
            self.model_tester = ImageTextTester(self, InternVLConfig, "text_config", text, vision, **settings)
            self.config_tester = ConfigTester(self, config_class=InternVLConfig, has_text_modality=False)

        def test_config(self):
            self.config_tester.run_common_tests()


with contextlib.suppress(ImportError):  # InternLM2's suite is skipped then, too
    from tests.models.llama.test_modeling_llama import LlamaModelTest as NativeLlamaTest  # noqa: F401


class NativeVisionTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (InternVLVisionModel,)
    test_resize_embeddings = False

    def setUp(self):
        settings = {"attention_bias": LAYER_NORM["qkv_bias"], "use_absolute_position_embeddings": True}
        self.model_tester = VisionTester(self, InternVLVisionConfig, **settings)
        self.config_tester = ConfigTester(
            self, InternVLVisionConfig, has_text_modality=False, hidden_size=32, num_attention_heads=4
        )

    def test_config(self):
        self.config_tester.run_common_tests()
