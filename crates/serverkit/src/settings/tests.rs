use super::*;

fn over(key: &str, value: &str) -> Result<Settings, Error> {
    Settings::load(None, &[(key.into(), value.into())])
}

#[test]
fn a_flag_changes_one_key_and_leaves_the_others() {
    let settings = over("trainer.lease_ms", "1000").expect("valid");
    assert_eq!(settings.trainer.lease_ms, 1000);
    assert_eq!(settings.trainer.max_attempts, Trainer::default().max_attempts);
}

#[test]
fn an_unknown_key_is_named() {
    let message = over("trainer.leese_ms", "1").expect_err("unknown").to_string();
    assert!(message.contains("leese_ms"), "{message}");
}

#[test]
fn a_value_of_the_wrong_type_is_named_by_its_key() {
    let message = over("gateway.max_batch", "many").expect_err("no number").to_string();
    assert!(message.contains("gateway.max_batch") || message.contains("max_batch"), "{message}");
}

#[test]
fn a_value_outside_its_limits_is_named_by_its_key() {
    let message = over("trainer.lease_ms", "5").expect_err("too short").to_string();
    assert_eq!(message, "settings: trainer.lease_ms: 5 ms is too short to heartbeat in; the least is 300");
    assert!(over("gateway.max_queue", "0").is_err());
    assert!(over("services.dataset", "localhost:1").is_err());
    let message = over("gateway.cors_origins", "example.org").expect_err("no origin").to_string();
    assert!(message.starts_with("settings: gateway.cors_origins: \"example.org\""), "{message}");
    for bad in ["/rows", "s3://", "file:///", "s3://rows, ftp://x"] {
        assert!(over("dataset.import_from", bad).expect_err(bad).to_string().contains("dataset.import_from"), "{bad}");
    }
    assert!(over("dataset.import_from", "s3://rows, file:///mnt/rows").is_ok());
    assert!(over("gateway.preload", "a, B!").expect_err("no name").to_string().contains("gateway.preload"));
}

#[test]
fn the_sample_file_shows_the_defaults() {
    let sample = include_str!("../../../../deploy/tailor.example.toml");
    let sample = config::File::from_str(sample, config::FileFormat::Toml);
    let sample = config::Config::builder().add_source(sample).build().expect("TOML");
    let sample: Settings = sample.try_deserialize().expect("known keys");
    assert_eq!(format!("{sample:#?}"), format!("{:#?}", Settings::default()));
}

#[test]
fn secrets_do_not_show_in_debug_output() {
    let mut settings = Settings::default();
    settings.auth.token = Some("hush".into());
    settings.store.secret_access_key = Some("hush".into());
    settings.queue.url = Some("redis://:hush@host".into());
    assert!(!format!("{settings:?}").contains("hush"));
}
