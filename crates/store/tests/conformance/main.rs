//! The conformance suite: the contract of the storage traits, run unchanged against each engine.
//!
//! Each test takes an [`Engine`] with an empty store. [`conformance!`] runs it on the embedded engine and on the cluster
//! engine, for which it starts private PostgreSQL and Redis servers. Tests wait for conditions; only the end of a lease
//! takes time, because leases end by the clock of the store.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests may panic"
)]
#![allow(unreachable_pub, reason = "nothing of a test binary is reachable")]

mod api_keys;
mod cluster;
mod corrupt;
mod crash;
mod dead_letters;
mod devices;
mod embedded;
mod encryption;
mod engine;
mod erasures;
mod follows;
mod leases;
mod ledger;
mod limits;
mod posts;
mod preferences;
mod retention;
mod sample;
mod stream_marks;
mod timelines;
mod tls;
mod totals;
mod users;

/// Runs tests on one engine: the name of a module for them, the engine and how it starts.
macro_rules! conformance {
    ($name:ident $engine:ty, $start:ident: $($module:ident { $($test:ident)* })*) => {
        mod $name {
            $(mod $module {
                $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $test() {
                    use crate::engine::Engine as _;

                    if let Some(mut engine) = <$engine>::$start().await {
                        crate::$module::$test(&mut engine).await;
                        engine.stop().await;
                    }
                })*
            })*
        }
    };
}

/// Runs tests on each engine.
macro_rules! on_each_engine {
    ($($tests:tt)*) => {
        conformance!(on_embedded crate::embedded::EmbeddedEngine, start: $($tests)*);
        conformance!(on_cluster crate::cluster::OnRedis, start: $($tests)*);
    };
}

on_each_engine! {
    users {
        keys_are_dense_and_never_change
        concurrent_calls_get_the_same_keys
        ids_differ_by_their_bytes
        long_ids_are_kept
    }
    follows {
        the_set_at_a_version_never_changes
        the_last_change_of_an_edge_wins_and_no_change_makes_no_version
        a_follow_without_a_notify_setting_keeps_it
        pages_end_at_their_limit
        a_version_reads_the_same_during_concurrent_writes
        concurrent_changes_are_all_applied
        old_versions_are_readable_until_they_are_trimmed
        many_followers_are_read_in_pages
    }
    posts {
        posts_are_read_as_archived_also_after_a_restart
        a_deletion_is_visible_at_once_and_can_precede_its_post
        a_request_id_stands_for_its_first_post
        a_request_id_past_its_retention_stands_for_no_post
        concurrent_archives_of_a_post_store_it_once
        big_posts_are_kept
        posts_are_listed_in_pages_and_found_by_time
        the_newest_posts_of_an_author_are_found_in_any_order_of_arrival
        texts_of_deleted_posts_are_removed_and_no_others
        many_texts_of_an_author_are_listed_and_removed
    }
    devices {
        registering_a_url_again_keeps_its_id_and_time
        ids_are_not_reused_after_a_restart
        a_device_above_the_limit_is_refused
        one_endpoint_is_one_device_however_it_is_spelled
        a_webhook_that_is_registered_again_keeps_its_secret
        a_rotated_secret_is_kept_until_it_expires
        a_late_result_does_not_change_a_device_that_was_renewed_meanwhile
        a_disabled_device_is_listed_until_it_is_enabled_or_registered_again
        a_failing_streak_counts_days_with_failures_and_ends_with_a_success
        web_push_devices_belong_to_a_vapid_key
    }
    preferences {
        unset_fields_stay_and_changes_survive_a_restart
        muting_above_the_limit_is_refused_and_changes_nothing
        concurrent_changes_are_all_applied
    }
    ledger {
        planning_a_slice_again_returns_the_recorded_plan
        an_empty_plan_is_recorded_too
        of_concurrent_attempts_one_plans_and_all_return_its_plan
        settled_chunks_stay_settled_when_the_slice_is_planned_again
        only_a_changed_outcome_gets_a_new_revision
        one_of_several_concurrent_writers_wins
        all_counts_add_up
        a_user_of_overlapping_chunks_is_listed_once
        pages_list_each_recipient_once_while_outcomes_change
        the_times_of_the_first_and_last_delivery_are_kept
        what_is_recorded_about_recipients_is_listed
        mark_dead_affects_pending_recipients_only
        recipients_that_wait_in_a_later_generation_survive_the_death_of_a_message
        an_audit_reads_all_rows_of_a_post
        posts_are_listed_once
        chunks_of_65_536_recipients_are_kept
        one_of_16_concurrent_claims_wins
        a_claim_that_ends_during_a_refusal_is_no_conflict
        a_claim_lasts_until_its_lease_ends
        an_extended_claim_lasts_longer
        a_released_claim_is_free_at_once
        a_settlement_ends_the_claim_unless_it_keeps_it
        a_claim_is_a_revision_without_a_change
    }
    totals {
        a_commit_counts_marks_seen_and_clears_the_announcement
        no_message_is_counted_twice
        concurrent_commits_are_all_counted
        a_revision_is_counted_once
        a_file_of_a_writer_that_is_gone_is_orphaned
        an_abandoned_file_is_not_committed
        an_abandoned_file_is_listed_until_it_is_forgotten
        a_fenced_writer_announces_nothing
    }
    leases {
        one_of_several_holders_gets_a_lease
        a_lease_is_free_after_its_end
        a_renewed_lease_lasts_longer
        a_released_lease_is_free_at_once
        a_holder_that_takes_its_lease_again_fences_itself
        leases_survive_a_restart
    }
    dead_letters {
        repeated_inserts_of_a_message_make_one_dead_letter
        an_id_is_never_given_to_a_second_message
        a_redrive_changes_states_and_survives_a_restart
        concurrent_redrives_claim_each_dead_letter_once
        a_discard_takes_open_dead_letters_and_is_recorded
        a_redrive_ends_with_its_last_outcome
        a_redrive_counts_the_dead_letters_whose_pushes_had_expired
        dead_letters_are_found_by_each_filter
        pages_continue_although_the_set_changes
        a_fenced_owner_claims_nothing
        no_more_operations_run_than_the_maximum
        a_missing_operation_is_an_error
    }
    erasures {
        a_user_is_forgotten_and_comes_back_as_another
        every_process_forgets_a_user
        a_post_that_comes_late_begins_another_erasure
        an_erasure_counts_and_ends_without_the_id
        users_who_come_back_all_the_time_keep_nothing
    }
    api_keys {
        a_key_is_kept_until_it_is_revoked
        only_ended_keys_make_room
        inserts_at_one_time_are_all_kept
    }
    stream_marks {
        a_mark_only_goes_forward_and_survives_a_restart
    }
    timelines {
        a_delivered_post_is_shown_at_once_newest_first
        delivering_a_pair_again_changes_nothing
        posts_arrive_in_any_order
        a_timeline_keeps_its_newest_posts
        pages_go_back_to_the_oldest_post
        pages_stay_whole_during_deliveries
        concurrent_deliveries_are_all_shown
        whole_timelines_of_many_users_are_read
        a_chunk_of_65_536_recipients_is_delivered
        a_post_id_above_the_maximum_is_refused
        a_complete_timeline_has_nothing_to_rebuild
        an_erased_timeline_stays_empty
    }
    retention {
        what_is_past_its_retention_is_removed_and_nothing_else
        a_clock_that_jumps_is_seen
        posts_of_a_gateway_whose_clock_is_behind_are_not_hidden
        old_dead_letters_go_unless_they_are_redriving
        two_processes_can_trim_at_once
        old_posts_are_removed_except_the_newest
        texts_of_posts_are_removed_some_time_after_the_deletion
    }
    corrupt {
        damaged_devices_fail_only_their_user
        damaged_preferences_fail_only_their_user
        damaged_devices_and_preferences_are_erased
        a_damaged_outcome_fails_only_its_chunk
        a_damaged_chunk_fails_only_its_plan
        a_damaged_post_fails_only_its_readers
        a_damaged_post_is_erased_whole
        a_damaged_dead_letter_is_left_out_and_hinders_no_redrive
    }
    limits {
        ids_beyond_all_rows_are_absent
        a_limit_of_any_size_lists_what_there_is
    }
}

/// The tests of devices on engines that encrypt them.
macro_rules! on_each_sealed_engine {
    ($($tests:tt)*) => {
        conformance!(sealed_on_embedded crate::embedded::EmbeddedEngine, start_sealed: $($tests)*);
        conformance!(sealed_on_cluster crate::cluster::OnRedis, start_sealed: $($tests)*);
    };
}

on_each_sealed_engine! {
    devices {
        registering_a_url_again_keeps_its_id_and_time
        ids_are_not_reused_after_a_restart
        a_device_above_the_limit_is_refused
        one_endpoint_is_one_device_however_it_is_spelled
        a_webhook_that_is_registered_again_keeps_its_secret
        a_rotated_secret_is_kept_until_it_expires
        a_late_result_does_not_change_a_device_that_was_renewed_meanwhile
        a_disabled_device_is_listed_until_it_is_enabled_or_registered_again
        a_failing_streak_counts_days_with_failures_and_ends_with_a_success
        web_push_devices_belong_to_a_vapid_key
    }
    corrupt {
        damaged_devices_fail_only_their_user
        damaged_devices_and_preferences_are_erased
    }
    encryption {
        what_devices_hold_is_not_in_the_store
        a_record_of_another_device_or_with_another_bit_fails_only_its_user
        a_store_is_refused_without_its_key
        plain_devices_stay_readable_and_are_encrypted_when_they_are_written
        a_rotation_during_changes_loses_none_and_ends_the_need_for_the_old_key
        a_rotation_reports_what_can_not_be_decrypted_and_keeps_its_key
        devices_of_a_lost_key_are_removed_and_all_others_stay
    }
}

conformance! {
    on_redis_cluster crate::cluster::OnRedisCluster, start:
    timelines {
        a_delivered_post_is_shown_at_once_newest_first
        delivering_a_pair_again_changes_nothing
        posts_arrive_in_any_order
        a_timeline_keeps_its_newest_posts
        pages_go_back_to_the_oldest_post
        pages_stay_whole_during_deliveries
        concurrent_deliveries_are_all_shown
        whole_timelines_of_many_users_are_read
        a_chunk_of_65_536_recipients_is_delivered
        a_post_id_above_the_maximum_is_refused
        a_complete_timeline_has_nothing_to_rebuild
        an_erased_timeline_stays_empty
    }
    retention {
        what_is_past_its_retention_is_removed_and_nothing_else
        a_clock_that_jumps_is_seen
        posts_of_a_gateway_whose_clock_is_behind_are_not_hidden
    }
}

conformance! {
    alone_on_embedded crate::embedded::EmbeddedEngine, start_alone:
    crash { what_was_answered_survives_a_kill }
}

conformance! {
    alone_on_cluster crate::cluster::OnRedis, start_alone:
    crash { what_was_answered_survives_a_kill }
}

conformance! {
    alone_on_redis_cluster crate::cluster::OnRedisCluster, start_alone:
    crash { what_was_answered_survives_a_kill }
}
