"""Transformers' common model tests on the vision encoder, in the forms of InternViT-6B and InternViT-300M."""

import unittest

from scaffold import LAYER_NORM, RMS_NORM, InternVisionConfig, InternVisionModel, VisionTester
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin


class VisionTest(ModelTesterMixin):
    all_model_classes = (InternVisionModel,)
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True
    settings = RMS_NORM

    def setUp(self):
        self.model_tester = VisionTester(self, InternVisionConfig, **self.settings)
        self.config_tester = ConfigTester(
            self, InternVisionConfig, has_text_modality=False, hidden_size=32, num_attention_heads=4
        )

    def test_config(self):
        self.config_tester.run_common_tests()


class VisionRMSNormTest(VisionTest, unittest.TestCase):
    pass


class VisionLayerNormTest(VisionTest, unittest.TestCase):
    settings = LAYER_NORM
