//! Who gets the root key of the gateway.

use std::collections::BTreeSet;

use crate::helm::{Helm, Input, items};

#[test]
fn only_the_gateway_and_the_test_have_the_root_key() {
    let Some(helm) = Helm::find() else { return };
    let holders = |values: &str| -> BTreeSet<(String, String)> {
        let objects = helm.objects(&Input::values(values));
        let mut holders = BTreeSet::new();
        for pod in objects.pods() {
            for container in items(&pod.spec["containers"]) {
                for variable in items(&container["env"]) {
                    let secret = &variable["valueFrom"]["secretKeyRef"];
                    if secret["key"] == "root-key" {
                        let name = variable["name"].as_str().unwrap().to_owned();
                        holders.insert((name, secret["name"].as_str().unwrap().to_owned()));
                    }
                }
            }
        }
        holders
    };
    let both = |secret: &str| {
        ["HERALD_AUTH__ROOT_KEY", "HERALD_TOKEN"]
            .map(|name| (name.to_owned(), secret.to_owned()))
            .into()
    };
    let made: BTreeSet<_> = holders("{}");
    assert_eq!(
        made.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["HERALD_AUTH__ROOT_KEY", "HERALD_TOKEN"]
    );
    assert!(
        made.iter().all(|(_, secret)| secret.ends_with("-root-key")),
        "{made:?}"
    );
    assert_eq!(holders("auth: {existingSecret: mine}"), both("mine"));
    assert_eq!(
        holders("auth: {enabled: false, insecureNoAuth: true}"),
        BTreeSet::new()
    );
}
