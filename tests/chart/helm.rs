//! Runs helm, and reads what it renders.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde::Deserialize as _;
use serde_json::Value;

/// Kinds that a cluster has only with the projects that define them.
const API_VERSIONS: [&str; 4] = [
    "cert-manager.io/v1",
    "keda.sh/v1alpha1",
    "gateway.networking.k8s.io/v1/GRPCRoute",
    "monitoring.coreos.com/v1",
];

/// A program of Helm, of version 4 (`helm`) or 3 (`helm3`).
#[derive(Debug, Clone)]
pub(crate) struct Helm(PathBuf);

/// What to render.
#[derive(Debug, Clone, Default)]
pub(crate) struct Input {
    /// Files in the chart's folder `examples`.
    pub(crate) examples: Vec<String>,
    /// Further values, as YAML.
    pub(crate) values: String,
    /// Arguments of `helm template`.
    pub(crate) arguments: Vec<&'static str>,
    /// The name of the release; empty: herald.
    pub(crate) release: &'static str,
    /// Whether the cluster lacks KEDA, the Gateway API and the Prometheus operator.
    pub(crate) bare: bool,
}

impl Input {
    /// The chart's defaults and these values.
    pub(crate) fn values(values: impl Into<String>) -> Self {
        Self {
            values: values.into(),
            ..Self::default()
        }
    }

    /// These examples.
    pub(crate) fn examples(examples: &[String]) -> Self {
        Self {
            examples: examples.to_vec(),
            ..Self::default()
        }
    }
}

/// The root of the repository.
pub(crate) fn repository() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap().to_owned()
}

/// The folder of the chart.
pub(crate) fn chart() -> PathBuf {
    repository().join("helm/herald")
}

/// A program, if it is installed.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(name));
    found.find(|program| program.is_file())
}

impl Helm {
    /// Helm 4, or the Helm that is installed as `helm`. `None`, and a sentence, where there is none.
    pub(crate) fn find() -> Option<Self> {
        let found = program("helm").map(Self);
        if found.is_none() {
            assert!(
                std::env::var_os("TESTS_REQUIRE_HELM").is_none(),
                "helm is not on the PATH, and TESTS_REQUIRE_HELM is set"
            );
            println!("SKIPPED: helm is not on the PATH, so the chart was not rendered");
        }
        found
    }

    /// Helm 3 beside it, if it is installed as `helm3`.
    pub(crate) fn find_3() -> Option<Self> {
        let found = program("helm3").map(Self);
        if found.is_none() {
            println!("SKIPPED: helm3 is not on the PATH, so Helm 3 was not compared");
        }
        found
    }

    /// Runs `helm template` for a release named herald.
    pub(crate) fn template(&self, input: &Input) -> Output {
        let folder = tempfile::tempdir().unwrap();
        let values = folder.path().join("values.yaml");
        fs::write(&values, &input.values).unwrap();
        let mut command = Command::new(&self.0);
        let release = if input.release.is_empty() {
            "herald"
        } else {
            input.release
        };
        command.args(["template", release]).arg(chart());
        command.args(["--namespace", "herald", "--kube-version", "1.34.0"]);
        for example in &input.examples {
            command
                .arg("--values")
                .arg(chart().join("examples").join(example));
        }
        command.arg("--values").arg(&values).args(&input.arguments);
        if !input.bare {
            command.args(
                API_VERSIONS
                    .iter()
                    .flat_map(|version| ["--api-versions", version]),
            );
        }
        command.output().unwrap()
    }

    /// The text that these values render.
    pub(crate) fn text(&self, input: &Input) -> String {
        let output = self.template(input);
        assert!(
            output.status.success(),
            "{input:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// The objects that these values render.
    pub(crate) fn objects(&self, input: &Input) -> Objects {
        Objects::parse(&self.text(input))
    }

    /// Why these values are refused.
    pub(crate) fn refusal(&self, input: &Input) -> String {
        let output = self.template(input);
        assert!(!output.status.success(), "accepted: {input:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Runs a command of helm with the chart, which must succeed.
    pub(crate) fn run(&self, command: &str, arguments: &[&str]) -> String {
        let run = Command::new(&self.0)
            .arg(command)
            .arg(chart())
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{text}");
        text
    }
}

/// Rendered objects.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Objects(pub(crate) Vec<Value>);

/// A pod or a pod template of an object.
#[derive(Debug)]
pub(crate) struct Pod<'a> {
    /// Kind and name of the object.
    pub(crate) owner: String,
    pub(crate) metadata: &'a Value,
    pub(crate) spec: &'a Value,
}

impl Objects {
    /// Reads documents of YAML.
    pub(crate) fn parse(text: &str) -> Self {
        let documents = yaml_serde::Deserializer::from_str(text);
        let values = documents.map(|document| Value::deserialize(document).unwrap());
        Self(values.filter(|value| !value.is_null()).collect())
    }

    /// The objects sorted by kind and name, which differ in their order between versions of Helm.
    pub(crate) fn sorted(mut self) -> Self {
        self.0.sort_by_key(id);
        self
    }

    pub(crate) fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    /// The object with this kind and name.
    pub(crate) fn get(&self, kind: &str, name: &str) -> &Value {
        let mut objects = self.0.iter();
        let found = objects.find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
    }

    /// All pods and pod templates.
    pub(crate) fn pods(&self) -> Vec<Pod<'_>> {
        let pods = self.0.iter().filter_map(|object| {
            let at = match object["kind"].as_str()? {
                "Deployment" | "StatefulSet" | "Job" => &object["spec"]["template"],
                "Pod" => object,
                _ => return None,
            };
            Some(Pod {
                owner: id(object),
                metadata: &at["metadata"],
                spec: &at["spec"],
            })
        });
        pods.collect()
    }
}

/// Kind and name of an object.
pub(crate) fn id(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// The items of a list; none if there is no list.
pub(crate) fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}
