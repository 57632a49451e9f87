"""One-line faults that the tests must catch, and what applies them (`make mutants`, `python -m tests.mutants WORD`).

Each fault is applied to a copy of the package; the test that is named for it has to fail there. A test that passes
without and with the fault proves nothing about the line.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault.

    Attributes:
        file: file of the package, relative to the repository.
        old: text to replace; stands exactly once in the file.
        new: the fault.
        test: pytest node that must fail, relative to the repository.
    """

    file: str
    old: str
    new: str
    test: str

    @property
    def name(self) -> str:
        """Return a short name: the file and the start of the fault."""
        return f"{Path(self.file).stem}: {' '.join(self.new.split())[:50]}"


MUTANTS = (
    Mutant(
        "difflm/training/config_objective.py",
        "if low >= high:",
        "if low > high:",
        "tests/training/test_config_objective.py::test_empty_band_is_refused",
    ),
    Mutant(
        "difflm/training/config.py",
        'if size != "row" and length % size:',
        'if size != "row" and size > length:',
        "tests/training/test_config.py::test_row_length_that_a_stage_does_not_divide_names_both",
    ),
    Mutant(
        "difflm/training/config_io.py",
        "yaml.dump(config_to_tree(config), Dumper=_Dumper,",
        "yaml.dump(config_to_tree(config), Dumper=yaml.SafeDumper,",
        "tests/training/test_config_io.py::test_a_dump_loads_to_the_equal_configuration",
    ),
    Mutant(
        "difflm/training/config_io.py",
        "            if key.value in seen:",
        "            if key.value is seen:",
        "tests/training/test_config_io.py::test_bad_overrides_are_one_line_errors",
    ),
    Mutant(
        "difflm/__main__.py",
        '    os.environ.setdefault("OMP_WAIT_POLICY", "passive")\n',
        "",
        "tests/cli/test_main.py::test_threads_wait_passively_unless_told_otherwise",
    ),
    Mutant(
        "difflm/decode/admission.py",
        '"eos_id": policy.eos_id}',
        '"eos_id": None}',
        "tests/decode/test_options.py::test_ids_of_a_policy_that_are_not_in_the_vocabulary_are_refused",
    ),
    Mutant(
        "difflm/decode/admission.py",
        '"min_tokens": params.min_tokens > 0}',
        '"min_tokens": False}',
        "tests/decode/test_infilling.py::test_refusals",
    ),
    Mutant(
        "difflm/decode/request.py",
        "if params is None:\n        return SamplingParams()",
        "if not params:\n        return SamplingParams()",
        "tests/decode/test_engine.py::test_parameters_of_another_type_are_refused_everywhere",
    ),
    Mutant(
        "difflm/likelihood.py",
        '("seed", seed, 0),',
        '("seed", 0, 0),',
        "tests/test_likelihood.py::test_what_cannot_be_scored_is_refused",
    ),
    Mutant(
        "difflm/evaluation/answers.py",
        "common = min(common, len(both) - 1)",
        "common = len(own)",
        "tests/evaluation/test_answers.py::test_a_pair_that_melts_into_one_token_is_cut_before_it",
    ),
    Mutant(
        "difflm/evaluation/answers.py",
        "key=noise_key(task, request.doc_id)",
        "key=None",
        "tests/evaluation/test_answers.py::test_choices_of_a_question_share_noise_and_questions_do_not",
    ),
    Mutant(
        "difflm/evaluation/answers.py",
        "if sampled is False:",
        "if False:",
        "tests/evaluation/test_answers.py::test_the_task_s_settings_go_first",
    ),
    Mutant(
        "difflm/evaluation/answers.py",
        "found.append((list(tokens[stop - room : start]), list(tokens[start:stop])))",
        "found.append((list(tokens[start - 1 : start]), list(tokens[start:stop])))",
        "tests/evaluation/test_answers.py::test_windows_score_each_token_once_with_all_the_context_there_is",
    ),
    Mutant(
        "difflm/evaluation/answers.py",
        'changed["seed"] = noise_key("", settings.params.seed, number) >> 1',
        'changed["seed"] = settings.params.seed',
        "tests/evaluation/test_answers.py::test_draws_of_questions_and_of_repeated_ones_differ",
    ),
    Mutant(
        "difflm/evaluation/usage.py",
        "forwards = self.denoise + self.commit",
        "forwards = self.denoise",
        "tests/evaluation/test_usage.py::test_rates_are_ratios_of_sums",
    ),
    Mutant(
        "difflm/evaluation/harness.py",
        "math.isfinite(error)",
        "True",
        "tests/evaluation/test_harness.py::test_metrics_come_with_their_standard_errors",
    ),
    Mutant(
        "difflm/evaluation/lm_eval.py",
        'if given.get("device") is None:',
        'if "device" in given:',
        "tests/evaluation/test_lm_eval.py::test_the_model_is_loaded_as_it_is_asked_for",
    ),
    Mutant(
        "difflm/cli/estimate.py",
        'startswith("train.model: missing")',
        'startswith("train.")',
        "tests/cli/test_estimate.py::test_a_recipe_without_a_model_says_how_to_give_one",
    ),
    Mutant(
        "difflm/cli/eval.py",
        'and found and ":" in found[-1]',
        'and found and found[-1].endswith(":")',
        "tests/cli/test_eval.py::test_settings_of_a_generated_task_keep_their_commas",
    ),
    Mutant(
        "difflm/reading.py",
        "seen_BL = unit_BL < last_B1",
        "seen_BL = unit_BL <= last_B1",
        "tests/test_reading.py::test_rows_with_one_prompt_forward_it_once",
    ),
    Mutant(
        "difflm/reading.py",
        "torch.unique(torch.cat([token_BC, document_BC], dim=1)",
        "torch.unique(torch.cat([document_BC, document_BC], dim=1)",
        "tests/test_reading.py::test_scores_are_those_of_the_whole_layout",
    ),
    Mutant(
        "difflm/reading.py",
        "seen_B1WK & real_BK[:, None, None, :]",
        "seen_B1WK",
        "tests/test_reading.py::test_scores_are_those_of_the_whole_layout",
    ),
    Mutant(
        "difflm/reading.py",
        'adapter=True if model.adapter_gate == "noisy" else None',
        "adapter=None",
        "tests/test_reading.py::test_an_adapter_acts_on_the_rows_that_its_gate_says",
    ),
    Mutant(
        "difflm/likelihood.py",
        "len(texts) * longest + (len(chunk) + 1) * (widest + longest // 8) > batch_tokens",
        "len(chunk) >= batch_tokens",
        "tests/test_likelihood.py::test_a_forward_holds_no_more_than_it_may",
    ),
    Mutant(
        "difflm/diffusion/views.py",
        "1.0 / (k * math.comb(size, k))",
        "1.0 / math.comb(size, k)",
        "tests/diffusion/test_views.py::test_all_masks_of_a_block_weigh_as_the_definition_says",
    ),
    Mutant(
        "difflm/diffusion/views.py",
        "priority_WN[:, place_N]",
        "priority_WN[:, : len(block_N)]",
        "tests/diffusion/test_views.py::test_places_that_are_left_out_keep_the_noise_of_the_others_aligned",
    ),
    Mutant(
        "difflm/diffusion/views.py",
        "for purpose in (0, 1)]",
        "for purpose in (len(place_N), 1)]",
        "tests/diffusion/test_views.py::test_texts_of_any_length_see_the_same_noise_at_the_same_place",
    ),
    Mutant(
        "difflm/likelihood.py",
        "token += [self.mask_id] * (-length % self.block_size)",
        "token += [self.mask_id] * 0",
        "tests/test_likelihood.py::test_the_bound_is_its_definition",
    ),
    Mutant(
        "difflm/likelihood.py",
        "/ (len(values) - 1) / len(values))",
        "/ (len(values) - 1))",
        "tests/test_likelihood.py::test_a_sampled_bound_is_the_exact_one_within_its_standard_error",
    ),
    Mutant(
        "difflm/likelihood.py",
        "key = prompt_key(given.prompt) if given.key is None else given.key",
        "key = id(given)",
        "tests/test_likelihood.py::test_choices_of_a_question_share_their_noise",
    ),
    Mutant(
        "difflm/likelihood.py",
        "self.greedy[row.number] = index not in wrong",
        "self.greedy[row.number] = not wrong",
        "tests/test_likelihood.py::test_greedy_says_whether_every_token_is_the_best",
    ),
    Mutant(
        "difflm/diffusion/acceptance.py",
        "if confidence > threshold]",
        "if confidence >= threshold]",
        "tests/diffusion/test_acceptance.py::test_the_threshold_is_strict",
    ),
    Mutant(
        "difflm/diffusion/acceptance.py",
        "if len(high) >= min_accept",
        "if len(high) >= 1",
        "tests/diffusion/test_acceptance.py::test_accept_equals_the_loops",
    ),
    Mutant(
        "difflm/decode/drawing.py",
        "right=True",
        "right=False",
        "tests/decode/test_sampling.py::test_the_ends_of_the_uniform_range_never_pick_a_token_of_mass_zero",
    ),
    Mutant(
        "difflm/decode/predicting.py",
        "hidden_MD[row] = last_D",
        "pass",
        "tests/decode/test_runner.py::test_hidden_rows_of_the_cached_path_are_those_of_the_training_layout",
    ),
    Mutant(
        "difflm/decode/runner.py",
        "hidden_ND[first + work.num_clean - 1]",
        "hidden_ND[-1]",
        "tests/decode/test_runner.py::test_hidden_rows_of_the_cached_path_are_those_of_the_training_layout",
    ),
    Mutant(
        "difflm/decode/packing.py",
        "block_N[:, None] >= block_N[None, :]",
        "block_N[:, None] > block_N[None, :]",
        "tests/decode/test_packing.py::test_visibility_is_the_training_layout_of_the_rows",
    ),
    Mutant(
        "difflm/decode/predicting.py",
        "rows_MD = rows_MD[count:]",
        "pass",
        "tests/decode/test_predicting.py::test_the_head_takes_so_many_rows_at_once_and_the_answers_stay",
    ),
    Mutant(
        "difflm/decode/forwards.py",
        "count.bit_length() - 3",
        "count.bit_length() - 2",
        "tests/decode/test_forwards.py::test_few_shapes_and_little_padding",
    ),
    Mutant(
        "difflm/decode/forwards.py",
        "            mine.copy_(given)\n",
        "            pass\n",
        "tests/decode/test_forwards.py::test_a_recording_is_repeated_on_new_inputs_and_large_forwards_are_not_recorded",
    ),
    Mutant(
        "difflm/decode/forwards.py",
        "        stored.zero_()",
        "        stored.fill_(1)",
        "tests/decode/test_forwards.py::test_compiled_is_padded_and_takes_all_of_the_cache_which_hides_no_nan",
    ),
    Mutant(
        "difflm/decode/forwards.py",
        "        nowhere = [[0] * missing, [0] * missing, [last] * missing]",
        "        nowhere = [[0] * missing, [0] * missing, [0] * missing]",
        "tests/decode/test_forwards.py::test_padded_and_recorded_forwards_answer_as_plain_ones",
    ),
    Mutant(
        "difflm/decode/packing.py",
        "step = 1 if request.noisy_causal else",
        "step =",
        "tests/decode/test_packing.py::test_visibility_is_the_training_layout_of_the_rows",
    ),
    Mutant(
        "difflm/models/segments.py",
        "entry_T < base_N1 +",
        "entry_T <= base_N1 +",
        "tests/models/test_segments.py::test_segments_see_what_parts_see",
    ),
    Mutant(
        "difflm/models/segments.py",
        "row_N, right=True",
        "row_N, right=False",
        "tests/models/test_segments.py::test_segments_see_what_parts_see",
    ),
    Mutant(
        "difflm/decode/prefixes.py",
        'f"{self.size} {self.clean_causal}".encode()',
        'b""',
        "tests/decode/test_prefixes.py::test_a_key_stands_for_its_block_and_everything_before_it",
    ),
    Mutant(
        "difflm/decode/prefixes.py",
        "blake2b(before + block,",
        "blake2b(block,",
        "tests/decode/test_prefixes.py::test_a_key_stands_for_its_block_and_everything_before_it",
    ),
    Mutant(
        "difflm/decode/prefixes.py",
        "if count and start in self.idle:",
        "if False:",
        "tests/decode/test_prefixes.py::test_the_longest_unused_blocks_make_room",
    ),
    Mutant(
        "difflm/decode/prefixes.py",
        "len(self.holders[keys[-1]]) > 1",
        "False",
        "tests/decode/test_prefixes.py::test_blocks_that_another_span_holds_are_not_kept_twice",
    ),
    Mutant(
        "difflm/decode/scheduler.py",
        "len(chain.keys) - request.logit_shift",
        "len(chain.keys)",
        "tests/decode/test_prefixes.py::test_a_shifted_model_sees_the_last_prompt_row_again",
    ),
    Mutant(
        "difflm/decode/scheduler.py",
        "if self._being_read(keys[count:], count):",
        "if False:",
        "tests/decode/test_prefixes.py::test_requests_that_begin_alike_read_their_common_blocks_once",
    ),
    Mutant(
        "difflm/decode/scheduler.py",
        "keys[: committed // work.request.block_size]",
        "keys",
        "tests/decode/test_prefixes.py::test_requests_that_begin_alike_read_their_common_blocks_once",
    ),
    Mutant(
        "difflm/decode/scheduler.py",
        "read += work.reads",
        "read += 0",
        "tests/decode/test_prefill.py::test_running_requests_go_on_while_prompts_are_read_and_all_prompts_share_the_room",
    ),
    Mutant(
        "difflm/models/cache.py",
        "source + count].clone()",
        "source + count]",
        "tests/models/test_cache.py::test_entries_are_copied_also_onto_themselves",
    ),
    Mutant(
        "difflm/decode/predicting.py",
        "< 0 < work.start:",
        "< 0:",
        "tests/decode/test_prefixes.py::test_answers_are_those_without",
    ),
    Mutant(
        "difflm/decode/policies/native.py",
        "suppressed=suppressed,",
        "suppressed=(),",
        "tests/decode/test_engine.py::test_a_model_that_prefers_mask_and_unassigned_ids_still_ends_and_never_emits_them",
    ),
    Mutant(
        "difflm/decode/policies/native.py",
        "num_tokens=len(tokens) + 1",
        "num_tokens=len(tokens)",
        "tests/decode/test_engine.py::test_eos_fill_does_not_count",
    ),
    Mutant(
        "difflm/decode/policies/native.py",
        "for place in draft.masked() if place < end)",
        "for place in draft.masked() if place < draft.limit)",
        "tests/decode/test_engine.py::test_positions_behind_an_accepted_eos_cost_no_forwards",
    ),
    Mutant(
        "difflm/decode/sequences.py",
        "not (by_id and token == draft.mask_id)",
        "token != draft.mask_id",
        "tests/decode/test_sequences.py::test_a_decided_position_is_never_recognised_by_its_id",
    ),
    Mutant(
        "difflm/decode/policies/base.py",
        "sum(value > threshold",
        "sum(value >= threshold",
        "tests/decode/policies/test_base.py::test_the_choice_and_what_made_it",
    ),
    Mutant(
        "difflm/decode/policies/hf.py",
        "(draft.steps < size % steps)",
        "0",
        "tests/decode/policies/test_hf.py::test_hf20_greedy",
    ),
    Mutant(
        "difflm/decode/policies/hf.py",
        "draft.post < self.max_post_steps",
        "draft.post <= self.max_post_steps",
        "tests/decode/policies/test_hf.py::test_hf21",
    ),
    Mutant(
        "difflm/decode/policies/hf.py",
        "filled and draft.mask_id not in",
        "filled and draft.mask_id in",
        "tests/decode/policies/test_hf.py::test_hf20_greedy",
    ),
    Mutant(
        "difflm/decode/policies/sglang.py",
        "draft.post >= self.max_post_edit_steps",
        "draft.post > self.max_post_edit_steps",
        "tests/decode/policies/test_sglang.py::test_joint_threshold",
    ),
    Mutant(
        "difflm/decode/policies/dinfer.py",
        "if best > self.low_threshold:",
        "if best > 0:",
        "tests/decode/policies/test_dinfer.py::test_the_best_of_a_run_waits_below_the_low_threshold",
    ),
    Mutant(
        "difflm/decode/policies/dinfer.py",
        "NEAR_TIE = 1e-5",
        "NEAR_TIE = 0.0",
        "tests/decode/policies/test_dinfer.py::test_positions_within_a_hair_of_the_best_are_taken_with_it",
    ),
    Mutant(
        "difflm/decode/sequences.py",
        "and not self.request.rule.random",
        "",
        "tests/decode/policies/test_hf.py::test_sampled_blocks_that_do_not_end_stop_at_the_bound",
    ),
    Mutant(
        "difflm/decode/sequences.py",
        "if unchanged and self._clean_as_noisy else 0",
        "if self._clean_as_noisy else 0",
        "tests/decode/policies/test_hf.py::test_a_block_that_its_last_forward_left_unchanged_costs_no_commit",
    ),
    Mutant(
        "difflm/decode/slots.py",
        "if first - start >= count:",
        "if first - start > count:",
        "tests/decode/test_slots.py::test_spans_against_a_map_of_cells",
    ),
    Mutant(
        "difflm/decode/drawing.py",
        "known_RI > 0",
        "known_RI >= -9",
        "tests/decode/test_drawing.py::test_the_processed_distribution",
    ),
    Mutant(
        "difflm/decode/drawing.py",
        "self.presence_penalty + self.frequency_penalty * count_I",
        "self.presence_penalty * count_I + self.frequency_penalty",
        "tests/decode/test_drawing.py::test_the_processed_distribution",
    ),
    Mutant(
        "difflm/decode/drawing.py",
        "probability_MV < least_M1",
        "probability_MV > least_M1",
        "tests/decode/test_drawing.py::test_the_processed_distribution",
    ),
    Mutant(
        "difflm/decode/stopping.py",
        "known - len(string) + 1)",
        "known)",
        "tests/decode/test_stopping.py::test_the_first_string_cuts_to_the_character",
    ),
    Mutant(
        "difflm/decode/stopping.py",
        "at < found[0]",
        "at > found[0]",
        "tests/decode/test_stopping.py::test_the_first_string_cuts_to_the_character",
    ),
    Mutant(
        "difflm/decode/stopping.py",
        "self._holding(tokens, text[: len(text) - longest])",
        "len(tokens)",
        "tests/decode/test_stopping.py::test_text_that_no_string_can_begin_in_is_told_at_once",
    ),
    Mutant(
        "difflm/decode/stopping.py",
        "known = text.rstrip(REPLACEMENT)",
        "known = text",
        "tests/decode/test_stopping.py::test_characters_of_several_tokens",
    ),
    Mutant(
        "difflm/decode/policies/native.py",
        "min(end + 1, draft.limit, draft.stop)",
        "min(end, draft.limit, draft.stop)",
        "tests/decode/test_options.py::test_an_eos_that_is_edited_away_opens_what_was_behind_it",
    ),
    Mutant(
        "difflm/decode/policies/native.py",
        "draft.post < self.max_post_steps",
        "draft.post <= self.max_post_steps",
        "tests/decode/test_options.py::test_native_editing_rewrites_decided_tokens_and_ends_when_nothing_changes",
    ),
    Mutant(
        "difflm/decode/predicting.py",
        "if place < free]",
        "if place <= free]",
        "tests/decode/test_options.py::test_nothing_ends_an_answer_before_min_tokens",
    ),
    Mutant(
        "difflm/decode/engine.py",
        "number * 0x9E3779B97F4A7C15",
        "number * 0",
        "tests/decode/test_options.py::test_answers_of_one_prompt_have_seeds_of_their_own_and_the_first_is_the_plain_one",
    ),
    Mutant(
        "difflm/decode/sequences.py",
        "[token is not None for token in request.template]",
        "[False for token in request.template]",
        "tests/decode/test_infilling.py::test_infilling_equals_recomputation",
    ),
    Mutant(
        "difflm/models/cache.py",
        "larger[:, :, : stored.shape[2]] = stored",
        "pass",
        "tests/models/test_cache.py::test_growing_keeps_what_is_stored_and_doubles_up_to_the_most",
    ),
    Mutant(
        "difflm/models/cache.py",
        "torch.cat([part.mask_NN.new_ones(",
        "torch.cat([part.mask_NN.new_zeros(",
        "tests/models/test_cache.py::test_the_mask_is_between_new_rows_only",
    ),
    Mutant(
        "difflm/bench/decode.py",
        "max(candidates, key",
        "min(candidates, key",
        "tests/bench/test_decode.py::test_the_fastest_setting_and_the_fastest_ar_system_win",
    ),
    Mutant(
        "difflm/diffusion/noise.py",
        "(size / count)[group_L].float()",
        "(count / size)[group_L].float()",
        "tests/diffusion/test_noise.py::test_weight_times_mask_averages_one_per_trainable_token",
    ),
    Mutant(
        "difflm/diffusion/objectives.py",
        "(term.weight_M.to(score.nll_M.device) * score.nll_M).sum()",
        "-(term.weight_M.to(score.nll_M.device) * score.nll_M).sum()",
        "tests/training/test_trainer.py::test_one_step_lowers_the_loss_of_the_same_rows",
    ),
    Mutant(
        "difflm/diffusion/objectives.py",
        'count=(counted_BL if self.weighting == "elbo" else masked_BL).sum()',
        "count=masked_BL.sum()",
        "tests/diffusion/test_objectives.py::test_loss_equals_a_loop_over_eq_1_2_and_5",
    ),
    Mutant(
        "difflm/diffusion/objectives.py",
        "wanted & left_U[unit_BL[position]]",
        "wanted",
        "tests/diffusion/test_noise.py::test_tokens_of_an_empty_complement_leave_the_normaliser",
    ),
    Mutant(
        "difflm/diffusion/objectives.py",
        "source + length, source)",
        "source, source)",
        "tests/test_scoring.py::test_score_reads_the_row_that_predicts_the_target",
    ),
    Mutant(
        "difflm/diffusion/objectives.py",
        "return batch.trainable_BL & (batch.position_BL > 0)",
        "return batch.trainable_BL",
        "tests/diffusion/test_objectives.py::test_loss_equals_a_loop_over_eq_1_2_and_5",
    ),
    Mutant(
        "difflm/diffusion/objectives.py",
        "first = rows.where(view_B == 0)",
        "first = rows",
        "tests/diffusion/test_objectives.py::test_the_ar_co_loss_is_next_token_on_the_clean_stream_once_per_row",
    ),
    Mutant(
        "difflm/diffusion/masks.py",
        "near = (difference == 0) & (key - query <= ahead)",
        "near = (difference == 0) & (key - query < ahead)",
        "tests/diffusion/test_masks.py::test_predicate_equals_the_loop",
    ),
    Mutant(
        "difflm/models/tiles.py",
        "torch.tensor(0), query[:, None], key[None])",
        "torch.tensor(0), query[None], key[:, None])",
        "tests/models/test_attention.py::test_a_long_document_beside_short_ones_in_small_tiles",
    ),
    Mutant(
        "difflm/models/ranges.py",
        "torch.minimum(block_stop, after_L + layout.lookahead)",
        "torch.minimum(block_stop, after_L - 1 + layout.lookahead)",
        "tests/models/test_ranges.py::test_ranges_equal_the_predicate",
    ),
    Mutant(
        "difflm/diffusion/context.py",
        "total_BL[:, :-distance] += share * inside * shown_BL[:, distance:]",
        "total_BL[:, :-distance] += share * inside * shown_BL[:, :-distance]",
        "tests/diffusion/test_context.py::test_weights_equal_the_definition",
    ),
    Mutant(
        "difflm/diffusion/context.py",
        "earlier = (same & ~inside).double()",
        "earlier = (same & ~inside) * shown_BL[:, :-distance]",
        "tests/diffusion/test_context.py::test_weights_equal_the_definition",
    ),
    Mutant(
        "difflm/diffusion/objectives.py",
        'count=(counted_BL if self.weighting == "elbo" else masked_BL)',
        'count=(masked_BL if self.weighting == "uniform" else counted_BL)',
        "tests/diffusion/test_context.py::test_the_objective_weighs_by_context_and_divides_by_masked_tokens",
    ),
    Mutant(
        "difflm/diffusion/curriculum.py",
        "if tokens_seen >= annealing_tokens:",
        "if tokens_seen > annealing_tokens:",
        "tests/diffusion/test_curriculum.py::test_the_view_widens_linearly_and_ends_open",
    ),
    Mutant(
        "difflm/diffusion/noise.py",
        "uniform_U[used_U] = stratified(count, generator) if spread else independent",
        "uniform_U[used_U] = stratified(count, generator)",
        "tests/diffusion/test_noise.py::test_stratified_draws_vary_less_than_independent_ones",
    ),
    Mutant(
        "difflm/training/build.py",
        "return lookahead_at(tokens, annealing_tokens=annealing,",
        "return lookahead_at(0, annealing_tokens=annealing,",
        "tests/training/test_build.py::test_the_view_is_annealed_over_the_run_s_first_tokens",
    ),
    Mutant(
        "difflm/diffusion/masks.py",
        "seen_clean = torch.where(noisy_query, difference > 0, clean)",
        "seen_clean = torch.where(noisy_query, difference >= 0, clean)",
        "tests/diffusion/test_masks.py::test_predicate_equals_the_loop",
    ),
    Mutant(
        "difflm/diffusion/scores.py",
        "grad_logit.sub_(chance * (finite + entropy_C1)",
        "grad_logit.add_(chance * (finite + entropy_C1)",
        "tests/diffusion/test_scores.py::test_equal_to_full_logits",
    ),
    Mutant(
        "difflm/models/attention.py",
        "mixed, total = mixed.to(query.dtype), merged",
        "mixed = mixed.to(query.dtype)",
        "tests/models/test_attention.py::test_split_equals_dense",
    ),
    Mutant(
        "difflm/models/attention.py",
        "part_query = grads[0] if part_query is None else part_query + grads[0]",
        "part_query = grads[0]",
        "tests/models/test_attention.py::test_split_equals_dense",
    ),
    Mutant(
        "difflm/training/optim.py",
        "master.grad += working.grad",
        "master.grad = working.grad.float()",
        "tests/training/test_optim.py::test_bfloat16_gradients_are_summed_in_float32",
    ),
    Mutant(
        "difflm/training/tally.py",
        "bucket_U = (RATE_BUCKETS * masked_U // size_U.clamp(min=1)).clamp(max=RATE_BUCKETS - 1)",
        "bucket_U = (RATE_BUCKETS * masked_U // (size_U + 1)).clamp(max=RATE_BUCKETS - 1)",
        "tests/training/test_tally.py::test_figures_by_mask_rate_equal_a_loop_over_tokens",
    ),
    Mutant(
        "difflm/training/tally.py",
        "self.rates.count(bucket_P[inputs.maskable_BL.cpu().flatten()])",
        "self.rates.count(bucket_P[term.place_M.cpu()])",
        "tests/training/test_tally.py::test_figures_by_mask_rate_equal_a_loop_over_tokens",
    ),
    Mutant(
        "difflm/training/tally.py",
        "self.counts[term.name] = self.counts.get(term.name, 0.0) + float(term.count)",
        "self.counts[term.name] = float(term.count)",
        "tests/training/test_tally.py::test_micro_batches_add_up_to_the_whole_batch",
    ),
    Mutant(
        "difflm/training/samples.py",
        "            working.train(training)",
        "            working.eval()",
        "tests/training/test_samples.py::test_a_run_with_samples_is_the_run_without",
    ),
    Mutant(
        "difflm/training/samples.py",
        '"tokens_per_forward": tokens / max(forwards, 1),',
        '"tokens_per_forward": sum(each.tokens_per_forward for each in samples) / len(samples),',
        "tests/training/test_samples.py::test_tokens_per_forward_are_sums_over_sums",
    ),
    Mutant(
        "difflm/estimate/memory.py",
        "state += WIDE * plan.parameter.numel() if by_muon else 2 * WIDE * plan.parameter.numel() + 4",
        "state += 2 * WIDE * plan.parameter.numel() + 4",
        "tests/estimate/test_memory.py::test_parameters_and_optimiser_are_exact",
    ),
    Mutant(
        "difflm/estimate/memory.py",
        "return width * (WIDE + size) + WIDE",
        "return width * 2 * size + WIDE",
        "tests/estimate/test_memory.py::test_activations_are_what_autograd_keeps",
    ),
    Mutant(
        "difflm/estimate/memory.py",
        "router += hidden * WIDE - (0 if moe.shared_experts else hidden * size)",
        "router += hidden * WIDE",
        "tests/estimate/test_memory.py::test_routed_tokens_are_kept_as_autograd_keeps_them",
    ),
    Mutant(
        "difflm/estimate/cluster.py",
        "held + (root if config.lora is None else 0) + step.recomputed",
        "held + root + step.recomputed",
        "tests/estimate/test_cluster.py::test_only_the_pairs_of_an_adapter_have_gradients_and_moments",
    ),
    Mutant(
        "difflm/checkpoints/moe_fields.py",
        'if style == "ling" else ("score_function", *ROUTER_NAMES):',
        'if style == "ling" else ():',
        "tests/checkpoints/test_moe_fields.py::test_another_router_of_qwen3_is_refused",
    ),
    Mutant(
        "difflm/estimate/cluster.py",
        "state = math.ceil(total / cluster.gpus)",
        "state = total // max(cluster.gpus // 2, 1)",
        "tests/estimate/test_cluster.py::test_flash_by_hand",
    ),
    Mutant(
        "difflm/estimate/cluster.py",
        "room = cluster.usable - (memory.peak - memory.state)",
        "room = cluster.memory - (memory.peak - memory.state)",
        "tests/estimate/test_cluster.py::test_flash_does_not_fit_on_one_gpu_and_fits_on_the_fewest",
    ),
    Mutant(
        "difflm/estimate/cluster.py",
        "return length * (length + block_size) if two_streams else length * (length + block_size) // 2",
        "return length * (length + block_size) if two_streams else length * length // 2",
        "tests/estimate/test_cluster.py::test_visible_pairs_are_those_of_the_mask",
    ),
    Mutant(
        "difflm/models/moe.py",
        "torch.mm(grad[start:stop].t(), rows[start:stop], out=grad_weight[group])",
        "torch.mm(grad[start:stop].t(), rows[start:stop], out=grad_weight[group - 1])",
        "tests/bench/test_gpu_moe.py::test_experts_and_products_are_within_tolerance",
    ),
    Mutant(
        "difflm/estimate/workload.py",
        "first, last = math.ceil(done / tokens_per_step), math.ceil((done + stage.tokens) / tokens_per_step)",
        "first, last = math.floor(done / tokens_per_step), math.floor((done + stage.tokens) / tokens_per_step)",
        "tests/estimate/test_workload.py::test_steps_of_stages_begin_where_a_step_begins",
    ),
    Mutant(
        "difflm/doctor.py",
        "        if worst > 1:",
        "        if worst > 1000:",
        "tests/test_doctor.py::test_a_backend_that_computes_something_else_is_a_problem",
    ),
    Mutant(
        "difflm/training/tally.py",
        "return term.scale / max(self.counts[term.name], 1.0)",
        "return term.scale / max(float(term.count), 1.0)",
        "tests/training/test_trainer.py::test_accumulation_equals_the_large_batch",
    ),
    Mutant(
        "difflm/training/trainer.py",
        "self.rows.batch(draw.row_B, draw.epoch_B)",
        "self.rows.batch(draw.row_B)",
        "tests/training/test_trainer.py::test_each_epoch_draws_new_noise_for_a_row",
    ),
    Mutant(
        "difflm/training/trainer.py",
        "return self.wrapper(chosen) if self.wrapper else chosen",
        "return chosen",
        "tests/test_examples.py::test_a_wrapper_receives_the_stage_as_it_is_configured",
    ),
    Mutant(
        "difflm/training/trainer.py",
        "return self.wrapper(chosen) if self.wrapper else chosen",
        "return self.wrapper(self.objective) if self.wrapper else chosen",
        "tests/test_examples.py::test_a_wrapper_receives_the_stage_as_it_is_configured",
    ),
    Mutant(
        "difflm/runs.py",
        "objective=objective, sampler=sample_with_engine",
        "sampler=sample_with_engine",
        "tests/test_docs.py::test_every_field_of_metrics_jsonl_is_documented",
    ),
    Mutant(
        "difflm/training/validation.py",
        "total += float(total_B.sum())",
        "total = float(total_B.sum())",
        "tests/training/test_validation.py::test_figures_do_not_depend_on_the_batch_and_settle_with_draws",
    ),
    Mutant(
        "difflm/diffusion/noise.py",
        "return 1.0 / t",
        "return -1.0 / t",
        "tests/diffusion/test_noise.py::test_weight_times_mask_averages_one_per_trainable_token",
    ),
    Mutant(
        "difflm/diffusion/noise.py",
        "masked_L = trainable_L & (rank_L < count_U[group_L])",
        "masked_L = rank_L < count_U[group_L]",
        "tests/diffusion/test_noise.py::test_weight_times_mask_averages_one_per_trainable_token",
    ),
    Mutant(
        "difflm/diffusion/noise.py",
        "(size / count)[group_L]",
        "(count / size)[group_L]",
        "tests/diffusion/test_noise.py::test_weight_times_mask_averages_one_per_trainable_token",
    ),
    Mutant(
        "difflm/diffusion/noise.py",
        "rest = torch.where(count < size, size / (size - count).clamp(min=1.0), 0.0)",
        "rest = torch.where(count < size, size / count, 0.0)",
        "tests/diffusion/test_noise.py::test_complements_that_are_not_empty_average_one_per_token_as_well",
    ),
    Mutant(
        "difflm/diffusion/noise.py",
        "count_U = torch.minimum((uniform_U * size_U).ceil()",
        "count_U = torch.minimum((uniform_U * size_U).floor()",
        "tests/diffusion/test_noise.py::test_exact_count_is_the_integral_of_bernoulli_masks",
    ),
    Mutant(
        "difflm/diffusion/noise.py",
        "chance_L = torch.rand(group_L.shape[0], generator=generator, dtype=torch.float64)",
        "chance_L = torch.rand(group_L.shape[0], dtype=torch.float64)",
        "tests/diffusion/test_noise.py::test_a_draw_depends_on_its_generator_alone",
    ),
    Mutant(
        "difflm/diffusion/noise.py",
        "weight_U = self.schedule.loss_weight(t_U) * scale",
        "weight_U = self.schedule.loss_weight(t_U)",
        "tests/diffusion/test_noise.py::test_weight_times_mask_averages_one_per_trainable_token",
    ),
    Mutant(
        "difflm/diffusion/noise.py",
        "for part in (epoch, row, purpose):",
        "for part in (row, purpose):",
        "tests/diffusion/test_noise.py::test_row_epoch_purpose_and_seed_all_give_other_numbers",
    ),
    Mutant(
        "difflm/diffusion/noise.py",
        "word = _mix(word + part)",
        "word = _mix(word ^ _mix(part))",
        "tests/diffusion/test_noise.py::test_row_epoch_purpose_and_seed_all_give_other_numbers",
    ),
    Mutant(
        "difflm/diffusion/noise.py",
        "out_BND[index, masked_N] = torch.randn(int(masked_N.sum()), hidden_size, generator=generator)",
        "out_BND[index] = torch.randn(len(masked_N), hidden_size, generator=generator)",
        "tests/diffusion/test_noise.py::test_embedding_noise_only_at_masks_with_the_asked_deviation",
    ),
    Mutant(
        "difflm/diffusion/masks.py",
        "clean = key <= query if layout.clean_causal else (difference > 0) | near",
        "clean = (difference > 0) | near",
        "tests/diffusion/test_masks.py::test_predicate_equals_the_loop",
    ),
    Mutant(
        "difflm/diffusion/masks.py",
        "return same & (key - query <= (0 if layout.causal_inside else ahead))",
        "return same & (key - query <= ahead)",
        "tests/diffusion/test_masks.py::test_predicate_equals_the_loop",
    ),
    Mutant(
        "difflm/diffusion/masks.py",
        "return document & torch.where",
        "return torch.where",
        "tests/diffusion/test_masks.py::test_predicate_equals_the_loop",
    ),
    Mutant(
        "difflm/diffusion/masks.py",
        "return position_BL // block_size",
        "return (position_BL + 1) // block_size",
        "tests/diffusion/test_masks.py::test_positions_and_blocks_restart_in_each_document",
    ),
    Mutant(
        "difflm/diffusion/objectives.py",
        "wanted_BL[:, 1:] &= batch.document_BL[:, 1:] == batch.document_BL[:, :-1]",
        "pass",
        "tests/diffusion/test_objectives.py::test_next_token_scores_completions_and_never_crosses_documents",
    ),
    Mutant(
        "difflm/diffusion/objectives.py",
        'count=(counted_BL if self.weighting == "elbo" else masked_BL)',
        "count=(masked_BL)",
        "tests/diffusion/test_noise.py::test_tokens_of_an_empty_complement_leave_the_normaliser",
    ),
    Mutant(
        "difflm/diffusion/objectives.py",
        "wanted & left_U[unit_BL[position]]))",
        "wanted))",
        "tests/diffusion/test_noise.py::test_tokens_of_an_empty_complement_leave_the_normaliser",
    ),
    Mutant(
        "difflm/diffusion/objectives.py",
        "source: Noise = FullMask() if self.block_size == 1 else self.noise",
        "source: Noise = self.noise",
        "tests/diffusion/test_objectives.py::test_block_size_one_is_mask_rate_one_and_weight_one_for_any_noise",
    ),
    Mutant(
        "difflm/diffusion/objectives.py",
        "return torch.where(start_BL[row_M, place_M], source + length, source)",
        "return source",
        "tests/diffusion/test_objectives.py::test_loss_equals_a_loop_over_eq_1_2_and_5",
    ),
    Mutant(
        "difflm/diffusion/objectives.py",
        'if self.ar_weight > 0 and self.parametrisation.clean_attention != "causal":',
        'if self.ar_weight > 1 and self.parametrisation.clean_attention != "causal":',
        "tests/diffusion/test_objectives.py::test_refused_combinations",
    ),
    Mutant(
        "difflm/diffusion/objectives.py",
        "two_streams=self._size(rows) < length or self.ar_weight > 0",
        "two_streams=True",
        "tests/diffusion/test_objectives.py::test_loss_equals_a_loop_over_eq_1_2_and_5",
    ),
    Mutant(
        "difflm/diffusion/scores.py",
        "grad_logit.scatter_add_(1, target_M[part, None], -scale.to(grad_logit.dtype))",
        "grad_logit.scatter_add_(1, target_M[part, None], scale.to(grad_logit.dtype))",
        "tests/diffusion/test_scores.py::test_equal_to_full_logits",
    ),
    Mutant(
        "difflm/diffusion/scores.py",
        "spread.append(total_C - (chance_CV",
        "spread.append(-total_C + (chance_CV",
        "tests/diffusion/test_scores.py::test_equal_to_full_logits",
    ),
    Mutant(
        "difflm/diffusion/curriculum.py",
        "if tokens_seen < stage.tokens:",
        "if tokens_seen <= stage.tokens:",
        "tests/diffusion/test_curriculum.py::test_stages_follow_each_other",
    ),
    Mutant(
        "difflm/models/attention.py",
        "before * (before_total - merged).exp()[..., None]",
        "before * (total - merged).exp()[..., None]",
        "tests/models/test_attention.py::test_split_equals_dense",
    ),
    Mutant(
        "difflm/models/attention.py",
        "part_query = grads[0] if part_query is None else part_query + grads[0]",
        "part_query = grads[0] if part_query is None else part_query",
        "tests/models/test_attention.py::test_split_equals_dense",
    ),
    Mutant(
        "difflm/models/ranges.py",
        "[length + block_start, none]",
        "[length + block_stop, none]",
        "tests/models/test_ranges.py::test_ranges_equal_the_predicate",
    ),
    Mutant(
        "difflm/models/ranges.py",
        "first_BL[:, 1:] |= block_BL[:, 1:] != block_BL[:, :-1]",
        "first_BL[:, 1:] = block_BL[:, 1:] != block_BL[:, :-1]",
        "tests/models/test_ranges.py::test_ranges_equal_the_predicate",
    ),
    Mutant(
        "difflm/models/ranges.py",
        "(key < own_stop[row, query])",
        "(key <= own_stop[row, query])",
        "tests/models/test_flex.py::test_lengths_around_the_kernel_tile",
    ),
    Mutant(
        "difflm/models/flex.py",
        "torch.compile(flex_attention, dynamic=False,",
        "torch.compile(flex_attention, dynamic=None,",
        "tests/models/test_flex.py::test_more_shapes_than_dynamo_allows_are_compiled_not_run_unfused",
    ),
    Mutant(
        "difflm/models/flex.py",
        "            if torch.is_grad_enabled():",
        "            if not torch.is_grad_enabled():",
        "tests/models/test_flex.py::test_backward_on_cpu_is_refused_in_one_line",
    ),
    Mutant(
        "difflm/models/attention.py",
        "if refusal is None:",
        "if refusal is not None:",
        "tests/models/test_attention.py::test_the_kernel_is_chosen_by_device",
    ),
    Mutant(
        "difflm/decode/drawing.py",
        "torch.cat(uniform).to(logits_MV.device)",
        "torch.cat(uniform)",
        "tests/test_devices.py::test_proposals",
    ),
    Mutant(
        "difflm/scoring.py",
        "term.target_M.to(flat.device)\n",
        "term.target_M\n",
        "tests/test_devices.py::test_a_training_step",
    ),
    Mutant(
        "difflm/models/attention.py",
        "additive.append(bias.repeat(heads_per_group, 1).to(device))",
        "additive.append(bias.repeat(heads_per_group, 1))",
        "tests/test_devices.py::test_a_training_step",
    ),
    Mutant(
        "difflm/models/transformer.py",
        "            if activation_checkpointing:",
        "            if not activation_checkpointing:",
        "tests/bench/test_train.py::test_activation_checkpointing_takes_less_memory",
    ),
    Mutant(
        "difflm/models/flex.py",
        "full_BKK = seen_BKK == TILE * TILE",
        "full_BKK = seen_BKK > 0",
        "tests/models/test_flex.py::test_the_block_mask_equals_the_one_of_torch",
    ),
    Mutant(
        "difflm/bench/gpu_check.py",
        'return 1 if counts["failed"] else 0',
        "return 0",
        "tests/bench/test_gpu_check.py::test_the_table_then_one_json_document",
    ),
    Mutant(
        "difflm/bench/gpu_suite.py",
        "not any(graphs[1:])",
        "not any(graphs[2:2])",
        "tests/bench/test_gpu_suite.py::test_the_curriculum_compiles_at_its_first_size_only",
    ),
    Mutant(
        "difflm/bench/train.py",
        "ratios = [other / mine for",
        "ratios = [mine / other for",
        "tests/bench/test_train.py::test_ratios_are_paired_by_repeat",
    ),
    Mutant(
        "difflm/inspection.py",
        "return glyphs.earlier if query_stream == 0 else glyphs.clean",
        "return glyphs.earlier if query_stream == 1 else glyphs.clean",
        "tests/test_inspection.py::test_a_small_mask_line_by_line",
    ),
    Mutant(
        "difflm/inspection.py",
        "mask_NN[stream * length + place]",
        "mask_NN[place]",
        "tests/test_inspection.py::test_the_picture_is_the_predicate",
    ),
    Mutant(
        "difflm/inspection.py",
        "parts == 1 else",
        "parts > 0 else",
        "tests/test_inspection.py::test_the_key_map_says_what_changes",
    ),
    Mutant(
        "difflm/models/tiles.py",
        "shares = not new_document or prefix == start",
        "shares = True",
        "tests/models/test_attention.py::test_a_long_document_beside_short_ones_in_small_tiles",
    ),
    Mutant(
        "difflm/models/ranges.py",
        "if layout.clean_causal else near_stop",
        "if layout.causal_inside else near_stop",
        "tests/models/test_attention.py::test_split_equals_dense",
    ),
    Mutant(
        "difflm/models/attention.py",
        "out_GNE[:, span] += grad_1GTE",
        "out_GNE[:, span] = grad_1GTE",
        "tests/models/test_attention.py::test_split_equals_dense",
    ),
    Mutant(
        "difflm/models/moe.py",
        "else score_NE.detach() + bias_E",
        "else score_NE.detach() + 0.0 * bias_E",
        "tests/models/test_golden.py::test_router",
    ),
    Mutant(
        "difflm/models/moe.py",
        "masked_fill(outside_NG1, -torch.inf)",
        "masked_fill(outside_NG1, 0.0)",
        "tests/models/test_moe.py::test_choice_equals_the_rule",
    ),
    Mutant(
        "difflm/models/moe.py",
        "grouped_NGM.topk(2, dim=-1)",
        "grouped_NGM.topk(1, dim=-1)",
        "tests/models/test_moe.py::test_choice_equals_the_rule",
    ),
    Mutant(
        "difflm/models/moe.py",
        "weight_NK = score_NE.gather(-1, expert_NK)",
        "weight_NK = choice_NE.gather(-1, expert_NK)",
        "tests/models/test_moe.py::test_the_bias_only_chooses",
    ),
    Mutant(
        "difflm/models/moe.py",
        "unflatten(0, (-1, ctx.copies)).sum(1)",
        "unflatten(0, (-1, ctx.copies)).amax(1)",
        "tests/models/test_moe.py::test_sorted_experts_equal_the_loop",
    ),
    Mutant(
        "difflm/models/moe.py",
        "wide = torch.promote_types(hidden_ND.dtype, torch.float32)",
        "wide = hidden_ND.dtype",
        "tests/models/test_moe.py::test_the_router_computes_in_float32",
    ),
    Mutant(
        "difflm/models/rope.py",
        "strength(config.mscale) / strength(config.mscale_all_dim)",
        "strength(config.mscale)",
        "tests/models/test_rope.py::test_yarn_equals_transformers",
    ),
    Mutant(
        "difflm/models/rope.py",
        "cosine, sine = cosine * scale, sine * scale",
        "cosine = cosine * scale",
        "tests/models/test_rope.py::test_yarn_equals_transformers",
    ),
    Mutant(
        "difflm/checkpoints/rope_fields.py",
        "return max(stated, int(rope.original_max_positions * rope.factor)) if",
        "return stated if",
        "tests/checkpoints/test_rope_fields.py::test_released_files_add_yarn_without_the_longer_context",
    ),
    Mutant(
        "difflm/checkpoints/rope_fields.py",
        "plain = int(plain / before.factor)",
        "plain = int(plain)",
        "tests/checkpoints/test_rope_fields.py::test_scaling_at_load_time_starts_from_the_unscaled_context",
    ),
    Mutant(
        "difflm/checkpoints/families.py",
        "and window < max_positions:",
        "and window < 0:",
        "tests/checkpoints/test_families.py::test_a_window_of_mistral_is_refused_where_a_context_can_feel_it",
    ),
    Mutant(
        "difflm/checkpoints/families.py",
        'updated["num_nextn_predict_layers"] = 0',
        'updated["num_nextn_predict_layers"] = 1',
        "tests/checkpoints/test_families.py::test_layers_for_more_tokens_are_gone_from_every_written_configuration",
    ),
    Mutant(
        "difflm/checkpoints/rules.py",
        "for part in expert.chunk(self.parts)]",
        "for part in expert.chunk(self.parts)[::-1]]",
        "tests/checkpoints/test_rules.py::test_where_the_parts_of_experts_and_projections_lie",
    ),
    Mutant(
        "difflm/checkpoints/saving.py",
        "own if dtype is None else stored_dtype(name, dtype)",
        "own if dtype is None else dtype",
        "tests/checkpoints/test_ling.py::test_biases_of_experts_survive_any_dtype",
    ),
    Mutant(
        "difflm/checkpoints/resume.py",
        "if differing := _differences(request, self._request):",
        "if differing := [] and _differences(request, self._request):",
        "tests/checkpoints/test_resume.py::test_another_option_is_refused_and_named",
    ),
    Mutant(
        "difflm/checkpoints/resume.py",
        '        if not self._begun:\n            return ""\n',
        "",
        "tests/checkpoints/test_resume.py::test_another_option_is_refused_and_named",
    ),
    Mutant(
        "difflm/checkpoints/resume.py",
        "                if problem:\n",
        "                if not name:\n",
        "tests/checkpoints/test_resume.py::test_damaged_finished_files_are_written_again_and_said",
    ),
    Mutant(
        "difflm/checkpoints/resume.py",
        "        sync(path)\n        self.finished_files",
        "        self.finished_files",
        "tests/checkpoints/test_resume.py::test_a_weight_file_is_on_the_disk_before_the_manifest_says_so",
    ),
    Mutant(
        "difflm/checkpoints/resume.py",
        "        require_free(target)  # another",
        "        pass  # another",
        "tests/checkpoints/test_resume.py::test_a_target_that_another_process_finished_meanwhile_is_left_alone",
    ),
    Mutant(
        "difflm/checkpoints/resume.py",
        "recorded[file.name].sha256 != hashes[file]",
        "not hashes[file]",
        "tests/checkpoints/test_resume.py::test_a_parent_that_is_not_what_its_manifest_says",
    ),
    Mutant(
        "difflm/checkpoints/hf.py",
        "if _identity(file) != self._identities[fact.file]:",
        "if not _identity(file):",
        "tests/checkpoints/test_resume.py::test_a_parent_that_changes_while_it_is_read_is_refused",
    ),
    Mutant(
        "difflm/checkpoints/hf.py",
        "        done += count\n",
        "        done = len(content)\n",
        "tests/checkpoints/test_shards.py::test_a_partial_write_goes_on",
    ),
    Mutant(
        "difflm/checkpoints/shards.py",
        "key=lambda each: (_ORDER.index(each.dtype), each.name)",
        "key=lambda each: each.name",
        "tests/checkpoints/test_shards.py::test_a_file_is_the_reference_writers_byte_for_byte",
    ),
    Mutant(
        "difflm/checkpoints/shards.py",
        "missing = [shard for shard in shards if not (ledger and ledger.has(shard.file))]",
        "missing = list(shards)",
        "tests/checkpoints/test_resume.py::test_a_killed_process_and_the_command_line",
    ),
    Mutant(
        "difflm/checkpoints/parameters.py",
        "step = max(1, SLAB_BYTES // one)",
        "step = count",
        "tests/checkpoints/test_parameters.py::test_what_is_held_at_once_is_a_tensor_or_a_slab",
    ),
    Mutant(
        "difflm/checkpoints/hf.py",
        "content = buffer((math.prod(shape) * fact.dtype.itemsize,), torch.uint8)",
        "content = torch.empty(math.prod(shape) * fact.dtype.itemsize, dtype=torch.uint8)",
        "tests/checkpoints/test_buffers.py::test_memory_does_not_grow_with_shards_and_none_of_it_is_the_c_librarys",
    ),
    Mutant(
        "difflm/checkpoints/merge.py",
        "            _add(totals, take(member, names, experts), factor)",
        "            others = take(member, names, experts)\n            _add(totals, others, factor)",
        "tests/checkpoints/test_buffers.py::test_memory_does_not_grow_with_shards_and_none_of_it_is_the_c_librarys",
    ),
    Mutant(
        "difflm/checkpoints/source.py",
        "return [each.to(self._dtype(rule)) for each in rule.change.to_model(parts, self.config)]",
        "return rule.change.to_model(parts, self.config)",
        "tests/checkpoints/test_parameters.py::test_the_dtype_of_some_experts_is_that_of_the_stack",
    ),
    Mutant(
        "difflm/checkpoints/source.py",
        "            if rule.disk[0] not in made:\n",
        "            if rule.disk[0]:\n",
        "tests/checkpoints/test_parameters.py::test_what_is_held_at_once_is_a_tensor_or_a_slab",
    ),
    Mutant(
        "difflm/checkpoints/gguf.py",
        "            self._map.madvise(mmap.MADV_DONTNEED)",
        "            pass",
        "tests/checkpoints/test_gguf.py::test_pages_that_were_read_are_let_go",
    ),
    Mutant(
        "difflm/checkpoints/hub.py",
        "local_files_only=offline",
        "local_files_only=False",
        "tests/checkpoints/test_hub.py::test_offline_mode_asks_for_nothing",
    ),
    Mutant(
        "difflm/checkpoints/hub.py",
        "if not _COMMIT.fullmatch(revision):",
        "if not _COMMIT.match(revision):",
        "tests/checkpoints/test_hub.py::test_branches_and_tags_are_refused",
    ),
    Mutant(
        "difflm/models/rope.py",
        "keep = ramp.clamp(0.0, 1.0)",
        "keep = 1.0 - ramp.clamp(0.0, 1.0)",
        "tests/models/test_rope.py::test_frequencies_equal_transformers",
    ),
    Mutant(
        "difflm/models/transformer.py",
        "hidden_BND = hidden_BND + embedding_noise_BND.to(hidden_BND)",
        "pass",
        "tests/models/test_transformer.py::test_embedding_noise_is_added_to_the_embedding_s_output",
    ),
    Mutant(
        "difflm/models/transformer.py",
        "key = self.key_norm(self.key(hidden_BND, adapter)",
        "key = self.query_norm(self.key(hidden_BND, adapter)",
        "tests/models/test_parity.py::test_logits_equal_on_import_and_after_export",
    ),
    Mutant(
        "difflm/models/transformer.py",
        "wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))",
        "wide = hidden",
        "tests/models/test_transformer.py::test_rms_norm_takes_its_statistics_in_float32",
    ),
    Mutant(
        "difflm/scoring.py",
        "masked_BL &= (position_BL > 0) if loaded.config.logit_shift else True",
        "pass",
        "tests/test_scoring.py::test_score_reads_the_row_that_predicts_the_target",
    ),
    Mutant(
        "difflm/scoring.py",
        "masked_BL = (noisy_BL == mask_id) & (document_BL != PADDING)",
        "masked_BL = noisy_BL == mask_id",
        "tests/test_scoring.py::test_padding_is_never_scored_even_where_it_holds_the_mask",
    ),
    Mutant(
        "difflm/decode/sequences.py",
        "answer = (i for i in range(first, len(draft.tokens)) if i not in given)",
        "answer = range(first, len(draft.tokens))",
        "tests/decode/test_infilling.py::test_given_tokens_are_prompt_and_not_answer_to_the_penalties",
    ),
    Mutant(
        "difflm/decode/admission.py",
        "return ends - {config.mask_token_id if policy is None or policy.mask_id is None else policy.mask_id}",
        "return ends",
        "tests/decode/test_options.py::test_the_mask_is_no_end_of_an_answer",
    ),
    Mutant(
        "difflm/decode/policies/native.py",
        'return "threshold" if min(confidences) > self.acceptance.threshold else "top_k"',
        'return "threshold"',
        "tests/decode/test_options.py::test_what_chose_the_positions_is_told",
    ),
    Mutant(
        "difflm/decode/admission.py",
        "if token == mask_id and not (policy is not None and policy.mask_in_prompt):",
        "if False:",
        "tests/decode/test_admission.py::test_a_mask_id_in_the_prompt_is_refused_with_its_place",
    ),
    Mutant(
        "difflm/decode/admission.py",
        "if total > most:",
        "if len(tokens) > most:",
        "tests/decode/test_admission.py::test_the_context_is_a_limit_and_the_message_names_the_numbers",
    ),
    Mutant(
        "difflm/data/rows.py",
        "trainable[place:middle], trainable[middle:end] = learnt, True",
        "trainable[place:middle], trainable[middle:end] = True, True",
        "tests/data/test_packing.py::test_the_prompt_is_not_trainable",
    ),
    Mutant(
        "difflm/data/rows.py",
        "position[place:end] = np.arange(length + fill)",
        "position[place:end] = np.arange(place, end)",
        "tests/data/test_packing.py::test_two_documents_share_a_row",
    ),
    Mutant(
        "difflm/data/packing.py",
        "np.where(is_filled, -length % multiple, 0)",
        "np.where(is_filled, -length % multiple, -length % multiple)",
        "tests/data/test_packing.py::test_plain_text_is_not_filled",
    ),
    Mutant(
        "difflm/data/packing.py",
        "return 1 + int(self._generator.random() * length)",
        "return length",
        "tests/data/test_packing.py::test_a_share_of_the_rows_is_shorter",
    ),
    Mutant(
        "difflm/data/loader.py",
        "epochs += self._passes[taken]",
        "epochs += (0,) * len(self._passes[taken])",
        "tests/data/test_loader.py::test_every_epoch_draws_every_row_once",
    ),
    Mutant(
        "difflm/data/documents.py",
        "content = json.dumps([self.text, self.prompt, self.completion])",
        "content = json.dumps([self.text, self.prompt, self.where])",
        "tests/data/test_splitting.py::test_copies_land_on_one_side_and_no_side_is_empty",
    ),
    Mutant(
        "difflm/data/documents.py",
        "if label not in (token_id, IGNORED_LABEL):",
        "if label not in (*token, IGNORED_LABEL):",
        "tests/data/test_documents.py::test_what_is_wrong_with_a_record_is_said_in_one_line",
    ),
    Mutant(
        "difflm/data/mixture.py",
        "taken = np.arange(epoch * count, (epoch + 1) * count)",
        "taken = np.arange(count)",
        "tests/data/test_mixture.py::test_each_source_is_passed_through_again_and_again",
    ),
    Mutant(
        "difflm/data/mixture.py",
        "seed=_source_seed(self.seed, number)",
        "seed=self.seed",
        "tests/data/test_mixture.py::test_orders_differ_by_epoch_seed_and_source",
    ),
    Mutant(
        "difflm/data/store.py",
        "self._num_bits += len(bits)",
        "self._num_bits += 0",
        "tests/data/test_packing.py::test_pieces_of_labelled_rows_read_the_right_bits",
    ),
    Mutant(
        "difflm/data/shards.py",
        'if hashes and file_hash(path) != entry["sha256"]:',
        'if hashes and file_hash(path) == "":',
        "tests/data/test_shards.py::test_damage_is_named",
    ),
    Mutant(
        "difflm/data/fitting.py",
        "            self._room = self.row_length\n",
        "            self._room = self.row_length - 1\n",
        "tests/data/test_fitting.py::test_the_meter_counts_the_rows_that_packing_makes",
    ),
    Mutant(
        "difflm/data/readers.py",
        'skip = place + 2 if mark == b"\\\\" else skip',
        'skip = place + 1 if mark == b"\\\\" else skip',
        "tests/data/test_readers.py::test_every_format_gives_the_same_documents",
    ),
    Mutant(
        "difflm/data/streams.py",
        '                    raise EOFError("the last frame is not complete")\n',
        "                    return 0\n",
        "tests/data/test_streams.py::test_an_archive_that_ends_early_or_is_damaged_is_refused",
    ),
    Mutant(
        "difflm/training/passes.py",
        "validates = plan.split.rank(document.content) < scan.boundary",
        "validates = plan.split.rank(document.content) <= scan.boundary // 2",
        "tests/training/test_prepare.py::test_the_split_is_that_of_a_list",
    ),
    Mutant(
        "difflm/training/opening.py",
        'if made["sha256"] != tokenizer_fingerprint(loaded.tokenizer, special.mask):',
        'if made["vocabulary"] != special.vocabulary and special.mask == -1:',
        "tests/training/test_opening.py::test_prepared_ids_belong_to_one_tokenizer",
    ),
    Mutant(
        "difflm/checkpoints/convert.py",
        "ids = {engine.mask_ids[target]",
        "ids = {-engine.mask_ids[target]",
        "tests/checkpoints/test_ling.py::test_a_token_in_the_place_of_the_engines_mask_is_told",
    ),
    Mutant(
        "difflm/checkpoints/saving.py",
        "for file in licence_files(source):",
        "for file in ():",
        "tests/checkpoints/test_export.py::test_an_export_is_the_same_model",
    ),
    Mutant(
        "difflm/checkpoints/config.py",
        "if tokenizer.is_ordinary(token, mask_token_id):",
        "if tokenizer.is_ordinary(token, -1):",
        "tests/checkpoints/test_config.py::test_contradictions_are_named",
    ),
    Mutant(
        "difflm/checkpoints/tokens.py",
        "return token_id in without_token(tokenizer, token_id).encode(",
        "return token_id not in without_token(tokenizer, token_id).encode(",
        "tests/checkpoints/test_bad_moe.py::test_a_mask_that_text_is_made_of_is_refused",
    ),
    Mutant(
        "difflm/checkpoints/mask_token.py",
        "pieces(matrix_VD[:known_ids])",
        "pieces(matrix_VD)",
        "tests/checkpoints/test_convert.py::test_weights_are_kept_bit_for_bit",
    ),
    Mutant(
        "difflm/checkpoints/mask_token.py",
        'return found | dict.fromkeys(eos, "an end-of-text (EOS) token")',
        "return found",
        "tests/checkpoints/test_convert.py::test_tokens_with_a_meaning_are_refused",
    ),
    Mutant(
        "difflm/checkpoints/rules.py",
        "return [each.unflatten(0, (heads, half, 2)).transpose(1, 2).flatten(0, 2) for each in tensors]",
        "return [each for each in tensors]",
        "tests/checkpoints/test_convert.py::test_from_gguf",
    ),
    Mutant(
        "difflm/checkpoints/merge.py",
        "totals = [_copied(each, torch.float32).mul_(scale) for each in own]",
        "totals = [each.clone().mul_(scale) for each in own]",
        "tests/checkpoints/test_merge.py::test_the_mean_is_that_of_float32",
    ),
    Mutant(
        "difflm/checkpoints/tokens.py",
        "if self.mask_token_id is None or self.mask_token_id not in ids:",
        "if True:",
        "tests/checkpoints/test_loading.py::test_text_in_and_out",
    ),
    Mutant(
        "difflm/checkpoints/tokens.py",
        "trust_remote_code=False",
        "trust_remote_code=True",
        "tests/checkpoints/test_tokens.py::test_code_of_a_tokenizer_never_runs",
    ),
    Mutant(
        "difflm/training/optim.py",
        "row.copy_(before + self.config.mask_row_lr_scale * (row - before))",
        "row.copy_(before)",
        "tests/training/test_trainer.py::test_the_mask_row_can_learn_at_another_rate",
    ),
    Mutant(
        "difflm/training/optim.py",
        "self.config.max_grad_norm or math.inf",
        "math.inf",
        "tests/training/test_optim.py::test_clipping_returns_the_norm_before_it",
    ),
    Mutant(
        "difflm/training/optim.py",
        'begin = total * (1.0 - config.decay_fraction) if config.kind == "wsd" else warmup',
        "begin = warmup",
        "tests/training/test_optim.py::test_learning_rate",
    ),
    Mutant(
        "difflm/training/validation.py",
        "noise=RowNoise(seed)",
        "noise=RowNoise(__import__('time').perf_counter_ns())",
        "tests/training/test_merging.py::test_a_single_checkpoint_validates_as_in_the_run",
    ),
    Mutant(
        "difflm/training/state.py",
        "if state.block_size == block_size and value is not None and",
        "if value is not None and",
        "tests/training/test_state.py::test_an_earlier_stage_is_no_candidate_however_good_it_is",
    ),
    Mutant(
        "difflm/training/state.py",
        "return [folder for _, folder in sorted(scored)]",
        "return [folder for _, folder in sorted(scored, reverse=True)]",
        "tests/training/test_state.py::test_candidates_have_the_final_block_size_and_a_perplexity",
    ),
    Mutant(
        "difflm/checkpoints/folders.py",
        "        flush_folder(stage)\n        if seal:",
        "        if seal:",
        "tests/checkpoints/test_folders.py::test_everything_is_on_the_disk_before_the_name_is",
    ),
    Mutant(
        "difflm/checkpoints/folders.py",
        "            replaced.rename(target)\n        raise",
        "            pass\n        raise",
        "tests/checkpoints/test_folders.py::test_a_folder_gives_way_only_to_a_finished_one",
    ),
    Mutant(
        "difflm/checkpoints/manifest.py",
        'if guarded(content).encode("ascii") != text:',
        "if not text:",
        "tests/checkpoints/test_manifest.py::test_no_bit_of_the_manifest_may_flip",
    ),
    Mutant(
        "difflm/checkpoints/manifest.py",
        "if file_sha256(file) != fact.sha256:",
        "if not file_sha256(file):",
        "tests/checkpoints/test_manifest.py::test_one_flipped_bit_anywhere_is_found",
    ),
    Mutant(
        "difflm/training/state.py",
        "if each.name <= newest.name and _is_sound(each)]",
        "if each.name <= newest.name]",
        "tests/training/test_state.py::test_damaged_checkpoints_are_neither_counted_nor_deleted",
    ),
    Mutant(
        "difflm/training/state.py",
        'glob("step-*"), reverse=True)',
        'glob("step-*"))',
        "tests/training/test_state.py::test_the_newest_whole_checkpoint_is_found_and_skipped_ones_are_named",
    ),
    Mutant(
        "difflm/training/state.py",
        "if folder in candidates - resumable:",
        "if folder in candidates:",
        "tests/training/test_state.py::test_pruning_keeps_the_newest_and_the_candidates",
    ),
    Mutant(
        "difflm/training/trainer.py",
        "position=self.state.position",
        "position=0",
        "tests/training/test_resume.py::test_interrupted_runs_end_as_whole_ones[float32-1]",
    ),
    Mutant(
        "difflm/training/trainer.py",
        "LoaderState(epoch=self.state.epoch,",
        "LoaderState(epoch=0,",
        "tests/training/test_resume.py::test_interrupted_runs_end_as_whole_ones[float32-1]",
    ),
    Mutant(
        "difflm/training/trainer.py",
        "run_state.load_moments(checkpoint, self.optimizer)",
        "pass",
        "tests/training/test_resume.py::test_interrupted_runs_end_as_whole_ones[float32-1]",
    ),
    Mutant(
        "difflm/training/trainer.py",
        "self.loaded.model.zero_grad(set_to_none=True)",
        "pass",
        "tests/training/test_nonfinite.py::test_a_skipped_step_touches_nothing_but_the_counters",
    ),
    Mutant(
        "difflm/training/trainer.py",
        "skipped=self.state.skipped + 1)",
        "skipped=1)",
        "tests/training/test_nonfinite.py::test_the_budget_is_of_the_whole_run_resumes_included",
    ),
    Mutant(
        "difflm/training/trainer.py",
        "    def _save(self) -> Path:\n        require_finite_weights(self.loaded.model, step=self.state.step)\n",
        "    def _save(self) -> Path:\n",
        "tests/training/test_nonfinite.py::test_weights_that_the_last_update_broke_are_never_saved",
    ),
    Mutant(
        "difflm/training/nonfinite.py",
        "(*losses.values(), norm)",
        "(norm,)",
        "tests/training/test_nonfinite.py::test_what_is_bad",
    ),
    Mutant(
        "difflm/training/run_folder.py",
        '"nonfinite", "validation.every_tokens")',
        '"nonfinite", "validation")',
        "tests/training/test_run_folder.py::test_a_changed_field_is_refused_by_its_full_name",
    ),
    Mutant(
        "difflm/checkpoints/lock.py",
        "if os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:",
        "if file:",
        "tests/training/test_lock.py::test_a_lock_that_was_let_go_between_opening_and_locking_is_no_lock",
    ),
    Mutant(
        "difflm/training/signals.py",
        "signal.signal(each, signal.SIG_DFL if handler is None else handler)",
        "pass",
        "tests/training/test_signals.py::test_handlers_come_back_after_an_error",
    ),
    Mutant(
        "difflm/training/origin.py",
        "(self.tokenizer, recorded.tokenizer,",
        "(self.tokenizer, self.tokenizer,",
        "tests/training/test_origin.py::test_what_changed_is_named",
    ),
    Mutant(
        "difflm/training/metrics.py",
        'row["step"] <= step',
        'row["step"] <= step + 1',
        "tests/training/test_resume.py::test_metrics_survive_a_torn_line_and_later_rows",
    ),
    Mutant(
        "difflm/training/muon.py",
        "product(gram, gram, gram, beta=second, alpha=third)",
        "product(gram, gram, gram, beta=third, alpha=second)",
        "tests/training/test_muon.py::test_a_matrix_moves_as_with_torch_bit_for_bit",
    ),
    Mutant(
        "difflm/training/muon.py",
        'update = gradient.lerp(mean, group["momentum"])',
        "update = mean",
        "tests/training/test_muon.py::test_steps_equal_the_explicit_ones",
    ),
    Mutant(
        "difflm/training/muon.py",
        "vector_norm(wide, dim=(-2, -1), keepdim=True)",
        "vector_norm(wide)",
        "tests/training/test_muon.py::test_a_stack_is_its_matrices",
    ),
    Mutant(
        "difflm/training/muon.py",
        "math.sqrt(max(update.shape[-2:]))",
        "math.sqrt(max(update.shape))",
        "tests/training/test_muon.py::test_the_scale_of_a_stack_is_that_of_its_matrices",
    ),
    Mutant(
        "difflm/training/muon.py",
        'if group["parts"] > 1:',
        "if False:",
        "tests/training/test_muon.py::test_matrices_one_below_the_other_are_updated_apart",
    ),
    Mutant(
        "difflm/training/parameters.py",
        "return num_layers if any(",
        "return num_layers - 1 if any(",
        "tests/training/test_parameters.py::test_layer_decay_counts_layers_below_the_last",
    ),
    Mutant(
        "difflm/training/parameters.py",
        "next((each for each in config.groups if",
        "next((each for each in reversed(config.groups) if",
        "tests/training/test_parameters.py::test_the_first_group_that_matches_counts_and_multiplies_the_layer",
    ),
    Mutant(
        "difflm/training/parameters.py",
        "named_parameters(remove_duplicate=False)",
        "named_parameters()",
        "tests/training/test_parameters.py::test_one_of_a_tied_pair_freezes_both",
    ),
    Mutant(
        "difflm/training/optim.py",
        'group["lr"] = group["peak"] * ratio',
        'group["lr"] = self.config.learning_rate * ratio',
        "tests/training/test_optim.py::test_steps_equal_the_explicit_ones",
    ),
    Mutant(
        "difflm/training/optim.py",
        "plan.parameter.requires_grad_(not plan.frozen)",
        "plan.parameter.requires_grad_(True)",
        "tests/training/test_optim.py::test_a_muon_run_resumes_bit_for_bit",
    ),
    Mutant(
        "difflm/training/optim.py",
        '("unknown", state.keys() - mine.keys())',
        '("unknown", [])',
        "tests/training/test_optim.py::test_other_states_are_refused_in_one_line_and_change_nothing",
    ),
    Mutant(
        "difflm/training/optim.py",
        "if isinstance(part, Muon):",
        "if False:",
        "tests/training/test_optim.py::test_a_muon_run_resumes_bit_for_bit",
    ),
    Mutant(
        "difflm/training/merge_methods.py",
        "newer.tokens // every - older.tokens // every > 1",
        "newer.tokens // every - older.tokens // every > 9",
        "tests/training/test_merge_methods.py::test_the_window_is_the_last_ones_without_a_gap",
    ),
    Mutant(
        "difflm/training/merge_methods.py",
        "(1.0 - self.decay if index else 1.0)",
        "(1.0 - self.decay)",
        "tests/training/test_merge_methods.py::test_the_moving_average_is_the_recursion",
    ),
    Mutant(
        "difflm/training/merge_methods.py",
        "[shapes[decay](index / count) for",
        "[shapes[decay](index / (count + 1)) for",
        "tests/training/test_merge_methods.py::test_weights_of_the_window_emulate_their_decay",
    ),
    Mutant(
        "difflm/training/state.py",
        "        if state.stage < first_stage:\n            continue\n",
        "",
        "tests/training/test_state.py::test_an_earlier_stage_of_the_last_block_size_is_no_candidate",
    ),
    Mutant(
        "difflm/training/merging.py",
        "if state.stage >= first]",
        "if state.block_size == self.facts.block_size]",
        "tests/training/test_merging.py::test_an_earlier_stage_of_the_same_block_size_is_no_candidate",
    ),
    Mutant(
        "difflm/training/merging.py",
        "        for each, _ in members:\n            self._verify(each.folder)\n",
        "",
        "tests/training/test_merging.py::test_a_damaged_member_is_named_and_nothing_is_written",
    ),
    Mutant(
        "difflm/checkpoints/merge.py",
        "some.add_(more.to(torch.float32), alpha=factor)",
        "some.add_(more.to(torch.float32))",
        "tests/checkpoints/test_merge.py::test_a_weighted_mean_is_that_of_float32",
    ),
    Mutant(
        "difflm/recipes/resolving.py",
        "sizes[sizes.index(max(sizes))] += tokens - sum(sizes)",
        "pass",
        "tests/recipes/test_resolving.py::test_scaled_budgets_add_up_and_keep_their_proportions",
    ),
    Mutant(
        "difflm/recipes/resolving.py",
        "    tree = override(tree, assignments(overrides))\n",
        "    tree = override(tree, overrides)\n",
        "tests/recipes/test_resolving.py::test_functions_return_trees_and_configurations",
    ),
    Mutant(
        "difflm/reporting/markup.py",
        "html.escape(printable(str(value)), quote=True)",
        "printable(str(value))",
        "tests/reporting/test_page.py::test_nothing_runs_and_nothing_is_loaded",
    ),
    Mutant(
        "difflm/plots.py",
        'rf"\\1#{name}-"',
        'r"\\1#"',
        "tests/reporting/test_page.py::test_ids_stand_once_and_references_have_a_target",
    ),
    Mutant(
        "difflm/reporting/charts.py",
        "total += mean * tokens",
        "total += mean",
        "tests/reporting/test_charts.py::test_a_cell_is_a_sum_over_a_count",
    ),
    Mutant(
        "difflm/reporting/facts.py",
        "for each in checkpoints if not each.damage)",
        "for each in checkpoints)",
        "tests/reporting/test_facts.py::test_damaged_checkpoints_are_named_and_count_for_nothing",
    ),
    Mutant(
        "difflm/reporting/facts.py",
        "count=Best().count, first_stage=config.final_stage)",
        "count=1, first_stage=config.final_stage)",
        "tests/reporting/test_facts.py::test_checkpoints_say_what_they_are_good_for",
    ),
    Mutant(
        "difflm/reporting/page.py",
        "if file.read(len(_FIRST_LINE)) != _FIRST_LINE.encode():",
        "if not file.readable():",
        "tests/reporting/test_page.py::test_a_report_gives_way_to_the_next_and_nothing_else_does",
    ),
    Mutant(
        "difflm/training/tracking.py",
        "purge = (entry.step + 1 if entry.step else 0) if entry.known else None",
        "purge = None",
        "tests/training/test_tracking.py::test_tensorboard_of_a_resumed_run_has_each_step_once",
    ),
    Mutant(
        "difflm/training/tracking.py",
        "return {*self.ahead, *(keys[",
        "return {*(keys[",
        "tests/training/test_tracking.py::test_a_resumed_run_goes_on_in_its_entry_and_repeats_nothing",
    ),
    Mutant(
        "difflm/training/tracking.py",
        "        elif _key(row) not in self.has[board]:\n",
        "        else:\n",
        "tests/training/test_tracking.py::test_a_resumed_run_goes_on_in_its_entry_and_repeats_nothing",
    ),
    Mutant(
        "difflm/training/tracking.py",
        '            text = text.replace(value, "***")\n',
        "            pass\n",
        "tests/training/test_tracking.py::test_a_board_that_does_not_start_is_one_line_without_secrets",
    ),
    Mutant(
        "difflm/training/tracking.py",
        "            for row in behind:\n                self._send(board, row)\n",
        "",
        "tests/training/test_tracking.py::test_a_board_that_is_switched_on_later_gets_what_was",
    ),
    Mutant(
        "difflm/training/tracking.py",
        "                tracker = self.active.pop(board)\n",
        "                tracker = self.active[board]\n",
        "tests/training/test_tracking.py::test_a_board_that_fails_does_not_stop_the_run",
    ),
    Mutant(
        "difflm/doctor.py",
        '    spinning = (policy or "").lower() != ',
        '    spinning = (policy or "") != ',
        "tests/test_doctor.py::test_threads_that_spin_on_a_busy_machine_are_a_note",
    ),
    Mutant(
        "difflm/doctor.py",
        "load > usable_cores() and torch.get_num_threads() > 1:",
        "load > usable_cores():",
        "tests/test_doctor.py::test_threads_that_spin_on_a_busy_machine_are_a_note",
    ),
    Mutant(
        "difflm/training/router.py",
        "(load_E.sum() - len(load_E) * load_E).sign()",
        "(len(load_E) * load_E - load_E.sum()).sign()",
        "tests/training/test_router.py::test_biases_move_by_the_rate_towards_the_mean",
    ),
    Mutant(
        "difflm/training/router.py",
        "clean_BL = layout.document_BL != PADDING",
        "clean_BL = layout.document_BL >= PADDING",
        "tests/training/test_router.py::test_loads_equal_a_loop_over_tokens",
    ),
    Mutant(
        "difflm/training/router.py",
        "{0 if inputs.maskable_BL is not None else 1: clean_BL}",
        "{0: clean_BL}",
        "tests/training/test_router.py::test_loads_equal_a_loop_over_tokens",
    ),
    Mutant(
        "difflm/training/router.py",
        "self.stream_N = torch.cat(numbers, dim=1).flatten()",
        "self.stream_N = torch.cat(numbers, dim=0).flatten()",
        "tests/training/test_router.py::test_loads_equal_a_loop_over_tokens",
    ),
    Mutant(
        "difflm/training/router.py",
        "(logit_NE.logsumexp(-1).square() * self.real_BN.flatten()).sum()",
        "logit_NE.logsumexp(-1).square().sum()",
        "tests/training/test_router.py::test_losses_on_routers_equal_their_formulas",
    ),
    Mutant(
        "difflm/training/router.py",
        " * self.real_BN[..., None]\n",
        "\n",
        "tests/training/test_router.py::test_losses_on_routers_equal_their_formulas",
    ),
    Mutant(
        "difflm/training/router.py",
        "count = max(self.tokens, 1)",
        "count = probe.real_BN.sum()",
        "tests/training/test_router.py::test_losses_and_loads_do_not_depend_on_micro_batches",
    ),
    Mutant(
        "difflm/training/router.py",
        "(entropy_N * (self.stream_N == stream)).sum()",
        "entropy_N[self.stream_N == stream].sum()",
        "tests/training/test_router.py::test_nothing_is_read_before_the_step_is_done",
    ),
    Mutant(
        "difflm/training/router.py",
        "if settings.bias_update_rate and moe is not None and not moe.expert_bias:",
        "if settings.bias_update_rate and moe is None:",
        "tests/training/test_router.py::test_what_a_model_has_no_router_for_is_refused",
    ),
    Mutant(
        "difflm/training/trainer.py",
        "losses = tally.losses() | routers.losses()",
        "losses = tally.losses()",
        "tests/training/test_router.py::test_a_router_loss_that_is_not_finite_is_a_bad_step",
    ),
    Mutant(
        "difflm/training/trainer.py",
        "Optimizer(master, config.learning,",
        "Optimizer(master, config.optimizer,",
        "tests/training/test_router.py::test_a_frozen_router_stays_while_the_rest_learns",
    ),
    Mutant(
        "difflm/training/trainer.py",
        "        routers.update_biases(self.loaded.model)\n        self.weights.publish()\n",
        "        self.weights.publish()\n        routers.update_biases(self.loaded.model)\n",
        "tests/training/test_router.py::test_each_step_updates_the_biases_by_its_own_loads",
    ),
    Mutant(
        "difflm/training/optim.py",
        "in [*self.pairs, *self.buffers]:",
        "in self.pairs:",
        "tests/training/test_router.py::test_each_step_updates_the_biases_by_its_own_loads",
    ),
    Mutant(
        "difflm/checkpoints/rules.py",
        "return [joined(tensors, dim=1)]",
        "return [joined(tensors[::-1], dim=1)]",
        "tests/checkpoints/test_rules.py::test_experts_and_fused_projections_come_back_bit_for_bit",
    ),
    Mutant(
        "difflm/checkpoints/export.py",
        "if self.layout.untied and architecture.tied_embeddings:",
        "if self.layout.untied and not architecture.tied_embeddings:",
        "tests/checkpoints/test_export.py::test_names_and_shapes_are_those_of_sdar_loaders",
    ),
    Mutant(
        "difflm/checkpoints/export.py",
        'generation["eos_token_id"] = list(config.eos_token_ids)',
        'generation["eos_token_id"] = config.eos_token_ids[0]',
        "tests/checkpoints/test_export.py::test_auto_config_gives_every_field_that_engines_read",
    ),
    Mutant(
        "difflm/checkpoints/export.py",
        'if config.clean_attention == "causal"',
        'if config.noisy_attention == "causal" and config.clean_attention == "causal"',
        "tests/checkpoints/test_export.py::test_what_would_be_decoded_wrongly_is_refused",
    ),
    Mutant(
        "difflm/checkpoints/export.py",
        "if layout.diffusion and config.mask_token_id is None:",
        "if False:",
        "tests/checkpoints/test_export.py::test_what_would_be_decoded_wrongly_is_refused",
    ),
    Mutant(
        "difflm/checkpoints/engines.py",
        "if config.mask_token_id != mask:",
        "if False:",
        "tests/checkpoints/test_engines.py::test_each_assumption_is_told",
    ),
    Mutant(
        "difflm/checkpoints/tokens.py",
        'return {"config": PretrainedConfig()} if isinstance(kind, str) and kind not in CONFIG_MAPPING else {}',
        "return {}",
        "tests/checkpoints/test_tokens.py::test_a_configuration_that_transformers_does_not_know_is_not_in_the_way",
    ),
    Mutant(
        "difflm/checkpoints/families.py",
        'for name in ("quantization_config", "compression_config"):',
        'for name in ("compression_config",):',
        "tests/checkpoints/test_moe_fields.py::test_what_is_wrong_or_not_implemented_is_named",
    ),
    Mutant(
        "difflm/models/lora.py",
        "torch.where(rows[..., None], added, out)",
        "added",
        "tests/models/test_lora.py::test_rows_outside_the_gate_are_the_parent_s_bit_for_bit",
    ),
    Mutant(
        "difflm/models/lora.py",
        "zip(a.to(wide).chunk(parts, dim=-2),",
        "zip(reversed(a.to(wide).chunk(parts, dim=-2)),",
        "tests/models/test_lora.py::test_experts_with_pairs_equal_experts_of_w_plus_b_a",
    ),
    Mutant(
        "difflm/models/moe.py",
        "adapter[order_P // expert_NK.shape[1]]",
        "adapter[back_P // expert_NK.shape[1]]",
        "tests/models/test_lora.py::test_the_gate_of_experts_goes_by_token",
    ),
    Mutant(
        "difflm/models/transformer.py",
        "given = (hidden_BND, table, attend, probe, adapter)",
        "given = (hidden_BND, table, attend, probe)",
        "tests/models/test_adapters.py::test_rows_before_the_first_adapted_one_are_the_parent_s",
    ),
    Mutant(
        "difflm/models/transformer.py",
        "return self.head.weight if rows is None else self.head.weight.index_copy(0, *rows)",
        "return self.head.weight",
        "tests/models/test_adapters.py::test_off_is_the_parent_bit_for_bit_and_merged_is_the_adapted_model",
    ),
    Mutant(
        "difflm/diffusion/scores.py",
        "    grad_CV[:, rows[0]] = 0\n",
        "",
        "tests/diffusion/test_scores.py::test_rows_that_stand_in_equal_a_head_with_them",
    ),
    Mutant(
        "difflm/models/adapters.py",
        "math.sqrt(self.rank) if self.stabilised else self.rank",
        "self.rank",
        "tests/models/test_adapters.py::test_the_scale",
    ),
    Mutant(
        "difflm/checkpoints/adapter_names.py",
        "if any(fits(module, target) for target in config.targets)",
        "if module in config.targets",
        "tests/checkpoints/test_adapter_names.py::test_a_lost_layer_is_noticed_by_the_targets",
    ),
    Mutant(
        "difflm/checkpoints/adapter_names.py",
        "if rank != config.rank and not config.varies:",
        "if not rank:",
        "tests/checkpoints/test_adapter_names.py::test_files_that_do_not_fit_are_refused",
    ),
    Mutant(
        "difflm/checkpoints/adapter_config.py",
        'return module == name or module.endswith(f".{name}")',
        "return module == name or module.endswith(name)",
        "tests/checkpoints/test_adapter_config.py::test_defaults_and_what_peft_writes",
    ),
    Mutant(
        "difflm/checkpoints/adapter.py",
        "total = share * delta if total is None else total + share * delta",
        "total = delta if total is None else total + share * delta",
        "tests/checkpoints/test_adapter.py::test_the_mean_of_adapters_is_the_mean_of_their_merged_weights",
    ),
    Mutant(
        "difflm/checkpoints/source.py",
        "if known and known != {self.digest()}:",
        "if known and known != known:",
        "tests/checkpoints/test_adapter.py::test_an_adapter_knows_its_base_by_hash",
    ),
    Mutant(
        "difflm/training/merging.py",
        "        remove_adapter(loaded.model)  # the mean is of merged weights\n",
        "",
        "tests/training/test_lora.py::test_a_merged_run_is_its_adapter_and_the_mean_is_of_merged_weights",
    ),
    Mutant(
        "difflm/training/optim.py",
        "if each.dtype == dtype and not each.requires_grad}",
        "if each.dtype == dtype and each.requires_grad}",
        "tests/training/test_lora.py::test_the_working_copy_shares_the_base_and_rounds_only_the_adapter",
    ),
    Mutant(
        "difflm/training/origin.py",
        "        copy_adapter(loaded.model, read_adapter(checkpoint, family, loaded.config.model))\n",
        "        read_adapter(checkpoint, family, loaded.config.model)\n",
        "tests/training/test_lora.py::test_an_interrupted_run_ends_as_a_whole_one_and_only_the_adapter_learns",
    ),
    Mutant(
        "difflm/training/lora.py",
        "if chosen and len(chosen) < len(place.weights):",
        "if not chosen and len(chosen) < len(place.weights) < 1:",
        "tests/training/test_lora.py::test_targets_that_cannot_be",
    ),
    Mutant(
        "difflm/training/parameters.py",
        "row = config.mask_row_lr_scale if TOKEN_ROWS in names else 1.0",
        "row = 1.0",
        "tests/training/test_parameters.py::test_of_a_model_with_an_adapter_only_the_adapter_learns",
    ),
    Mutant(
        "difflm/models/quantised.py",
        "        scale_N1 = _scales(wide_NI)\n",
        "        scale_N1 = _scales(wide_NI).amax(0, keepdim=True).expand(len(wide_NI), 1)\n",
        "tests/models/test_quantised.py::test_a_row_does_not_depend_on_the_others[dtype0]",
    ),
    Mutant(
        "difflm/models/quantised.py",
        "        out_NO *= self.scale_O\n",
        "",
        "tests/models/test_quantised.py::test_products_with_what_the_codes_stand_for[3-False]",
    ),
    Mutant(
        "difflm/models/quantised.py",
        "(coarse_NO + fine_NO / FINE)",
        "(coarse_NO + 0 * fine_NO / FINE)",
        "tests/models/test_quantised.py::test_products_with_what_the_codes_stand_for[3-False]",
    ),
    Mutant(
        "difflm/bench/speed_systems.py",
        "visible_NN = block_N[:, None] >= block_N[None, :]",
        "visible_NN = block_N[:, None] >= 0 * block_N[None, :]",
        "tests/bench/test_speed_systems.py::test_the_loop_answers_as_the_engine[32-8]",
    ),
    Mutant(
        "difflm/bench/speed_report.py",
        "statistics.median(scale * theirs / ours for ours, theirs in pairs)",
        "rate(mine) / rate(other)",
        "tests/bench/test_speed_report.py::test_goals_against_the_loop_are_paired_by_repeat",
    ),
    Mutant(
        "difflm/bench/speed.py",
        "    if whole != text:\n",
        "    if False:\n",
        "tests/bench/test_speed.py::test_an_interrupted_run_goes_on_with_the_next_case",
    ),
    Mutant(
        "difflm/bench/gpu_decode.py",
        "size = size * counted.experts[number] // module.gate_up.shape[0]",
        "size = size * 1",
        "tests/bench/test_gpu_decode.py::test_only_experts_with_a_row_are_touched",
    ),
    Mutant(
        "difflm/checkpoints/loading.py",
        "check_weights(weights, architecture, device=device, gate=None if found is None else found.facts.gate)",
        "",
        "tests/models/test_quantised.py::test_refusals",
    ),
    Mutant(
        "difflm/models/quantised.py",
        "self.lora = linear.lora if isinstance(linear, Linear) else None",
        "self.lora = None",
        "tests/models/test_quantised.py::test_an_adapter_that_drafts_stays_beside_the_codes",
    ),
    Mutant(
        "difflm/decode/recorder.py",
        "step=cell.step or step",
        "step=step",
        "tests/decode/test_recorder.py::test_an_edit_keeps_the_step_of_the_first_writing_and_an_opened_position_is_open",
    ),
    Mutant(
        "difflm/decode/recorder.py",
        "if isinstance(event, Denoised | Committed):",
        "if isinstance(event, Denoised):",
        "tests/decode/test_recorder.py::test_the_events_come_back_from_a_file_and_lead_to_the_tokens",
    ),
    Mutant(
        "difflm/decode/recorder.py",
        "token=None if token == self.mask_id else token,",
        "token=token,",
        "tests/decode/test_recorder.py::test_an_edit_keeps_the_step_of_the_first_writing_and_an_opened_position_is_open",
    ),
    Mutant(
        "difflm/decode/recorder.py",
        "step + 1 if event.block == block else 1",
        "step + 1",
        "tests/decode/test_recorder.py::test_cells_say_when_and_how_surely",
    ),
    Mutant(
        "difflm/decode/recorder.py",
        "completion=replace(event.completion, logprobs=None)",
        "completion=event.completion",
        "tests/decode/test_recorder.py::test_the_events_come_back_from_a_file_and_lead_to_the_tokens",
    ),
    Mutant(
        "difflm/display/replay.py",
        "if number and isinstance(event, Denoised):",
        "if isinstance(event, Denoised):",
        "tests/display/test_replay.py::test_a_replay_on_a_terminal_waits_between_forwards_and_leaves_the_text",
    ),
    Mutant(
        "difflm/evaluation/tasks.py",
        "sorted(random.Random(seed).sample(range(len(items)), n))",
        "range(n)",
        "tests/evaluation/test_tasks.py::test_a_file_gives_a_seeded_choice_in_its_order",
    ),
    Mutant(
        "difflm/evaluation/tasks.py",
        "text.strip() == item.reference.strip()",
        "text.strip() == item.reference",
        "tests/evaluation/test_tasks.py::test_space_around_an_answer_does_not_count_and_completions_are_answers",
    ),
    Mutant(
        "difflm/evaluation/measuring.py",
        "if list(written) == completion.tokens and completion.text is not None:",
        "if completion.text is not None:",
        "tests/evaluation/test_measuring.py::test_an_answer_is_without_the_prompt_that_a_policy_returns",
    ),
    Mutant(
        "difflm/evaluation/intervals.py",
        "if set(scores) <= {0.0, 1.0}:",
        "if True:",
        "tests/evaluation/test_intervals.py::test_yes_or_no_scores_have_wilson_s_interval_others_the_bootstrap_s",
    ),
    Mutant(
        "difflm/evaluation/sweep.py",
        "for other, found in known if other == key",
        "for other, found in known",
        "tests/evaluation/test_sweep.py::test_finished_points_are_taken_and_others_measured",
    ),
    Mutant(
        "difflm/evaluation/sweep.py",
        "settings = swept | own",
        "settings = own | swept",
        "tests/evaluation/test_sweep.py::test_what_a_policy_sets_itself_is_not_swept",
    ),
    Mutant(
        "difflm/evaluation/sweep.py",
        "point.measured.score > best[-1].measured.score",
        "point.measured.score >= best[-1].measured.score",
        "tests/evaluation/test_sweep.py::test_the_pareto_set_is_what_no_point_beats",
    ),
    Mutant(
        "difflm/evaluation/sweep.py",
        ' and each.name != "generation_config.json"',
        "",
        "tests/evaluation/test_sweep.py::test_a_model_whose_weights_changed_is_another_one",
    ),
    Mutant(
        "difflm/evaluation/sweep.py",
        "each.stat().st_size, each.stat().st_mtime_ns",
        "1",
        "tests/evaluation/test_sweep.py::test_a_model_whose_weights_changed_is_another_one",
    ),
    Mutant(
        "difflm/evaluation/tune.py",
        "<= max_loss + ROUNDING",
        "< max_loss",
        "tests/evaluation/test_tune.py::test_the_fastest_setting_within_the_loss_is_chosen",
    ),
    Mutant(
        "difflm/evaluation/tune.py",
        "losses = [before - after for",
        "losses = [after - before for",
        "tests/evaluation/test_tune.py::test_the_fastest_setting_within_the_loss_is_chosen",
    ),
    Mutant(
        "difflm/evaluation/tune.py",
        "merged(read_optional_json(file), updates)",
        "updates",
        "tests/evaluation/test_tune.py::test_what_is_written_is_what_decoding_takes",
    ),
    Mutant(
        "difflm/evaluation/tune.py",
        "answers=tuple(measured.answers)",
        "answers=()",
        "tests/evaluation/test_tune.py::test_without_answers_the_careful_ones_are_right",
    ),
    Mutant(
        "difflm/evaluation/tune.py",
        "tokens_per_second * AS_FAST >= fastest",
        "tokens_per_second >= fastest",
        "tests/evaluation/test_tune.py::test_the_fastest_setting_within_the_loss_is_chosen",
    ),
    Mutant(
        "difflm/diffusion/masks.py",
        "real & same & (place <= last)",
        "real & same & (place < last)",
        "tests/diffusion/test_masks.py::test_windows_see_the_clean_row_up_to_their_anchor_and_themselves",
    ),
    Mutant(
        "difflm/models/ranges.py",
        "torch.where(real, width + seed + 1, 0)",
        "torch.where(real, width + seed + 2, 0)",
        "tests/models/test_ranges.py::test_ranges_of_windows_equal_the_predicate",
    ),
    Mutant(
        "difflm/models/tiles.py",
        "torch.tensor([start, stop])",
        "torch.tensor([start, stop - 1])",
        "tests/models/test_tiles.py::test_windows_stand_on_the_tile_of_their_anchor",
    ),
    Mutant(
        "difflm/models/flex.py",
        "seq_lengths=(queries, ranges.num_keys)",
        "seq_lengths=(queries, queries)",
        "tests/models/test_flex.py::test_windows",
    ),
    Mutant(
        "difflm/models/streams.py",
        "torch.cat([value_BGNE, value], dim=2)",
        "torch.cat([value_BGNE, key], dim=2)",
        "tests/models/test_streams.py::test_under_a_gate_clean_rows_are_the_base_and_noisy_rows_the_adapter_s",
    ),
    Mutant(
        "difflm/scoring.py",
        "position_BN[:, width:], clean, adapter=False)",
        "position_BN[:, width:], clean, adapter=True)",
        "tests/models/test_streams.py::test_clean_rows_are_the_parent_bit_for_bit",
    ),
    Mutant(
        "difflm/models/transformer.py",
        'adapter = self.adapter_gate == "all" if adapter is None else adapter',
        "adapter = True if adapter is None else adapter",
        "tests/models/test_streams.py::test_clean_rows_are_the_parent_bit_for_bit",
    ),
    Mutant(
        "difflm/diffusion/divergence.py",
        "        return q - p\n",
        "        return p - q\n",
        "tests/diffusion/test_divergence.py::test_equal_to_loops_over_full_distributions",
    ),
    Mutant(
        "difflm/diffusion/divergence.py",
        "return q * (sign - (q * sign).sum(-1, keepdim=True))",
        "return q * sign",
        "tests/diffusion/test_divergence.py::test_equal_to_loops_over_full_distributions",
    ),
    Mutant(
        "difflm/diffusion/windows.py",
        'teacher_M=None if self.draft_loss == "ce" else flat + width + place - 1,',
        'teacher_M=None if self.draft_loss == "ce" else flat + width + place,',
        "tests/diffusion/test_windows.py::test_teachers_are_the_clean_rows_that_predict_the_same_token",
    ),
    Mutant(
        "difflm/diffusion/windows.py",
        "rows_A = torch.minimum(size_A, left_L[anchor_A]) - hidden",
        "rows_A = size_A - hidden",
        "tests/diffusion/test_windows.py::test_windows_stay_inside_their_document_and_their_budget",
    ),
    Mutant(
        "difflm/diffusion/windows.py",
        "weight_P[entry_W + hidden]",
        "weight_P[entry_W]",
        "tests/diffusion/test_windows.py::test_uniform_masks_k_of_a_window_and_weighs_n_over_k",
    ),
    Mutant(
        "difflm/diffusion/windows.py",
        "count=counted_BW.sum().double().cpu(),",
        "count=(counted_BW & (weight_BW > 0)).sum().double().cpu(),",
        "tests/diffusion/test_windows.py::test_loss_equals_a_loop_over_windows_and_rows",
    ),
    Mutant(
        "difflm/checkpoints/adapter.py",
        "        gate=told.gate,\n",
        "",
        "tests/checkpoints/test_adapter_saving.py::test_the_gate_is_saved_loaded_and_never_lost",
    ),
    Mutant(
        "difflm/checkpoints/source.py",
        "for member in members if merge else ():",
        "for member in ():",
        "tests/checkpoints/test_adapter_saving.py::test_the_gate_is_saved_loaded_and_never_lost",
    ),
    Mutant(
        "difflm/decode/admission.py",
        'if loaded.model.adapter_gate == "noisy":',
        "if False:",
        "tests/training/test_drafts.py::test_an_adapter_for_noisy_rows_leaves_the_base_as_it_is",
    ),
    Mutant(
        "difflm/training/drafts.py",
        "whole_AS.long().cumprod(dim=1).sum()",
        "whole_AS.long().sum()",
        "tests/training/test_drafts.py::test_agreement_and_tokens_per_cycle_against_a_loop",
    ),
    Mutant(
        "difflm/training/config.py",
        "    if objective.ar_weight:\n",
        "    if objective.ar_weight < 0:\n",
        "tests/training/test_drafts.py::test_what_cannot_be",
    ),
)


@contextmanager
def mutated(mutant: Mutant | None) -> Iterator[Path]:
    """Yield a folder with a copy of package, demo and tests, and the fault in it."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for part in ("difflm", "tests", "demo", "docs", "examples"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "cache", "run"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy / name)
        if mutant:
            path = copy / mutant.file
            text = path.read_text(encoding="utf-8")
            assert text.count(mutant.old) == 1, f"{mutant.file}: {mutant.old!r} stands {text.count(mutant.old)} times"
            path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        yield copy


def outcome(folder: Path, tests: list[str]) -> int:
    """Run tests in a copy and return pytest's exit code: 0 all pass, 1 some fail; others are errors of ours."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "slow or not slow", "--hypothesis-profile=mutants"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    return subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=False).returncode


def caught(mutant: Mutant) -> bool:
    """Return whether the mutant's test fails on it."""
    with mutated(mutant) as folder:
        code = outcome(folder, [mutant.test])
    assert code in (0, 1), f"{mutant.test} could not be run (pytest exit code {code})"
    return code == 1


def main(words: list[str]) -> int:
    """Check the mutants whose file, fault or test contains one of the words; return the exit code."""
    chosen = [each for each in MUTANTS if not words or any(word in f"{each.name} {each.test}" for word in words)]
    if not chosen:
        print(f"no fault, file or test contains {' or '.join(words)}")
        return 2
    with mutated(None) as folder:
        if outcome(folder, sorted({each.test for each in chosen})):
            print("the named tests do not pass without a fault")
            return 2
    survivors = 0
    for mutant in chosen:
        found = caught(mutant)
        survivors += not found
        print(f"{'caught' if found else 'SURVIVED'}  {mutant.name}  ({mutant.test})", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
