//! Keeping house from the command line: deletion and its way back, rules, garbage, usage, the audit log, damage; and that a
//! gateway with a key serves nothing unsigned.

use crate::support::{Family, Training, Up};

/// RFC 8032's first test key: no secret.
const KEY: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";

async fn train(up: &Up, steps: u64) {
    let key = steps.to_string();
    let job = Training { base: Family::T5.base(), dataset: "rows", adapter: "kept", steps, key: &key };
    up.addresses.succeeded(&up.addresses.create(&job).await.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_comes_back_what_no_rule_keeps_goes_and_the_log_tells() {
    let mut up = Up::start().await;
    up.add_base_and_rows(Family::T5).await;
    for steps in [1, 2, 3] {
        train(&up, steps).await;
    }
    let cli = up.cli();
    cli.json(&["adapter", "set-alias", "kept", "production", "1"]);
    cli.json(&["adapter", "rm", "kept@2", "--why", "wrong rows"]);
    let score = ["score", "--adapter", "kept@2", "--prompt-ids", "40,41", "--token-ids", "42,43"];
    cli.refused(&score).says("FAILED_PRECONDITION", &["version 2 of adapter kept was deleted", "undelete"]);
    cli.refused(&["adapter", "rm", "kept@1"]).says("FAILED_PRECONDITION", &["production"]);
    cli.refused(&["adapter", "rm", "kept"]).says("ERROR", &["kept@3"]);
    cli.json(&["adapter", "undelete", "kept@2"]);
    assert!(cli.json(&score)["tokens"][1]["logprob"].is_number(), "it is back, with all its bytes");

    let rules = cli.json(&["adapter", "keep", "kept", "--last", "1", "--why", "room"]);
    assert_eq!((&rules["keep_last"], &rules["why"]), (&1.into(), &"room".into()));
    let dry = cli.json(&["adapter", "gc", "--dry-run"]);
    assert_eq!(dry["expired"]["kept"], serde_json::json!([2]), "not the newest, nor what the alias points to: {dry}");
    assert!(cli.json(&score)["tokens"][1]["logprob"].is_number(), "a dry run does nothing");
    let done = cli.json(&["adapter", "gc"]);
    assert_eq!(done["expired"], dry["expired"], "{done}");
    cli.refused(&score).says("FAILED_PRECONDITION", &["was deleted"]);
    let usage = cli.json(&["adapter", "usage"]);
    let adapter = &usage["adapters"][0];
    assert_eq!((&adapter["adapter"], &adapter["live"], &adapter["deleted"]), (&"kept".into(), &2.into(), &1.into()));

    let lines = cli.lines(&["adapter", "audit"]);
    let told = serde_json::to_string(&lines).expect("json");
    for deed in ["publish", "set-alias", "delete", "undelete", "set-retention"] {
        assert!(told.contains(&format!("\"{deed}\"")), "{deed} is not in {told}");
    }
    let sound = cli.run(&["adapter", "verify"]);
    assert_eq!(sound.status, 0, "{}", sound.output);
    // One bit of one stored blob.
    let version = cli.json(&["adapter", "show", "kept@3"]);
    let digest = version["weights_digest"].as_str().expect("a digest").trim_start_matches("sha256:").to_owned();
    let path = up.state.join("store/blobs/sha256").join(&digest[..2]).join(&digest);
    let mut bytes = std::fs::read(&path).expect("the weights");
    *bytes.last_mut().expect("a byte") ^= 1;
    std::fs::write(&path, bytes).expect("damaged");
    let damaged = cli.run(&["adapter", "verify"]);
    assert!(
        damaged.status != 0 && format!("{}{}", damaged.output, damaged.errors).contains(&digest),
        "the blob is named"
    );
    assert_eq!(up.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_trusted_key_a_gateway_serves_what_is_signed_and_nothing_else() {
    let mut up = Up::start().await;
    up.add_base_and_rows(Family::T5).await;
    train(&up, 1).await;
    let score = |version: u32| {
        let reference = format!("kept@{version}");
        ["score", "--adapter", &reference, "--prompt-ids", "40,41", "--token-ids", "42,43"].map(ToOwned::to_owned)
    };
    let run = |up: &Up, version| {
        let arguments = score(version);
        up.cli().run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert_eq!(run(&up, 1).status, 0, "without a key anything is served");
    assert_eq!(up.stop(), Some(0));
    let Up { folder, state, .. } = up;
    let mut up = Up::on(folder, Some(state), &[("TAILOR__TRUST__SIGNING_KEY", KEY)]).await;
    let refused = run(&up, 1);
    assert_ne!(refused.status, 0);
    assert!(
        refused.errors.contains("not signed") || refused.output.contains("not signed"),
        "{}{}",
        refused.output,
        refused.errors
    );
    train(&up, 2).await;
    assert_eq!(run(&up, 2).status, 0, "what this key signed is served");
    // The clients of model hubs check no signature, so the registry does.
    for (version, wanted) in [(1, "403"), (2, "200")] {
        let url = format!("{}/adapters/kept/resolve/{version}/adapter_config.json", up.addresses.registry);
        let asked =
            std::process::Command::new("curl").args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]).output();
        assert_eq!(String::from_utf8_lossy(&asked.expect("curl runs").stdout), wanted, "version {version}");
    }
    assert_eq!(up.stop(), Some(0));
}
