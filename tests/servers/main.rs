//! The real lockrun against real servers. `every` holds what is true of each store; a file beside it what only one kind of
//! server has: credentials, TLS, what it says in `check`.

#[path = "../it/common/mod.rs"]
mod common;
mod etcd;
mod etcd_cluster;
mod every;
#[path = "../fixture/mod.rs"]
mod fixture;
mod kubernetes;
mod postgres;
mod redis;

macro_rules! on_every_server {
    ($($test:ident),+ $(,)?) => {
        mod on_etcd {
            $(#[test] fn $test() { super::every::$test::<super::fixture::etcd::Etcd>() })+
        }
        mod on_kubernetes {
            $(#[test] fn $test() { super::every::$test::<super::fixture::kubernetes::apiserver::Any>() })+
        }
        mod on_postgres {
            $(#[test] fn $test() { super::every::$test::<super::fixture::postgres::Postgres>() })+
        }
        mod on_redis {
            $(#[test] fn $test() { super::every::$test::<super::fixture::redis::Redis>() })+
        }
    };
}

on_every_server!(
    a_command_gets_its_token_and_its_exit_code_is_passed_on,
    of_many_copies_that_start_at_once_one_runs_at_a_time,
    a_held_lease_is_shown_with_its_holder_and_not_waited_for_with_n,
    other_names_are_other_leases,
    without_a_name_nothing_is_started,
    a_server_that_is_away_is_waited_for_and_with_n_called_unreachable,
    the_next_copy_is_told_when_the_command_ends,
    a_front_that_is_killed_leaves_nothing_behind_and_the_lease_free,
    a_guard_that_is_killed_leaves_nothing_behind_and_the_lease_free,
    when_both_are_killed_the_next_waits_for_the_ttl_by_its_own_clock,
    a_server_that_comes_back_within_the_lease_is_ridden_out,
    a_server_away_for_longer_than_the_lease_ends_the_command_before_another_may_start,
    a_server_that_hangs_for_longer_than_the_lease_ends_the_command_before_another_may_start,
    a_partition_ends_the_command_before_another_starts_and_what_arrives_late_changes_nothing,
    a_connection_reset_in_the_middle_of_a_claim_starts_the_command_once,
    renewals_whose_answers_are_lost_are_recognised_or_sent_again,
    a_machine_that_is_cut_off_ends_its_command_before_another_machine_starts_it,
);
