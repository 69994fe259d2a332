"""Transformers' common model and generation tests on the whole model, with each kind of language model."""

import unittest

from scaffold import LAYER_NORM, RMS_NORM, ImageTextTester, InternVLChatConfig, InternVLChatModel
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin


class ChatTest(ModelTesterMixin, GenerationTesterMixin):
    all_model_classes = (InternVLChatModel,)
    all_generative_model_classes = (InternVLChatModel,)
    _is_composite = True
    test_can_init_all_missing_weights_before_2023 = True
    # An image token without its tile is refused, so the comparisons of attention backends need both.
    additional_model_inputs = ("pixel_values",)
    text, vision = {"model_type": "internlm2"}, RMS_NORM

    def setUp(self):
        self.model_tester = ImageTextTester(self, InternVLChatConfig, "llm_config", self.text, self.vision)
        self.config_tester = ConfigTester(self, config_class=InternVLChatConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()


class ChatInternLM2Test(ChatTest, unittest.TestCase):
    pass


class ChatDynamicTest(ChatTest, unittest.TestCase):
    text = {"model_type": "internlm2", "rope_scaling": {"type": "dynamic", "factor": 3.0}}


class ChatLlamaTest(ChatTest, unittest.TestCase):
    text, vision = {"model_type": "llama"}, LAYER_NORM


class ChatPhi3Test(ChatTest, unittest.TestCase):
    text, vision = {"model_type": "phi3"}, LAYER_NORM


class ChatQwen2Test(ChatTest, unittest.TestCase):
    text, vision = {"model_type": "qwen2"}, LAYER_NORM


class ChatTiedQwen2Test(ChatTest, unittest.TestCase):
    text, vision = {"model_type": "qwen2", "tie_word_embeddings": True}, LAYER_NORM


class ChatDynamicQwen2Test(ChatTest, unittest.TestCase):
    text = {"model_type": "qwen2", "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    vision = LAYER_NORM
