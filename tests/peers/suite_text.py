"""Transformers' tests of causal language models on InternLM2; the native model beside it is Llama."""

import importlib.util
import unittest

import pytest
from scaffold import InternLM2Config, InternLM2ForCausalLM, InternLM2Model


if importlib.util.find_spec("tests.causal_lm_tester") is None:
    pytest.skip("the source distribution lacks tests/causal_lm_tester.py", allow_module_level=True)
from tests.causal_lm_tester import CausalLMModelTest, CausalLMModelTester


class InternLM2Tester(CausalLMModelTester):
    config_class, base_model_class, causal_lm_class = InternLM2Config, InternLM2Model, InternLM2ForCausalLM


class InternLM2Test(CausalLMModelTest, unittest.TestCase):
    model_tester_class = InternLM2Tester
    test_can_init_all_missing_weights_before_2023 = True
    pipeline_model_mapping = {}
