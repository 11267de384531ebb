//! Spawns the services of the roles.

use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result};
use herald_mesh::{Mesh, Topology};
use herald_model::Lane;
use herald_push::Vapid;
use herald_runtime::{grpc::Listener, metrics::Shared, rpc_metrics::ServerMetrics};
use herald_store::Stores;

use super::{
    Config, background::Background, broker_state::BrokerState, checks::Checks, peers::Channels, roles::Role,
    services::Services,
};

/// The shared dependencies of the services.
pub(super) struct Parts {
    pub(super) config: Config,
    /// Whether the process is one of many.
    pub(super) shared: bool,
    pub(super) topology: Arc<Topology>,
    pub(super) mesh: Mesh,
    /// Of roles that run in the background.
    pub(super) background: Option<Background>,
    /// `None` if no role of the process uses the store.
    pub(super) stores: Option<Stores>,
    pub(super) metrics: Shared,
    pub(super) rpc_metrics: ServerMetrics,
    pub(super) checks: Checks,
}

impl Parts {
    fn background(&self) -> Result<&Background> {
        self.background
            .as_ref()
            .context("the background threads are not running")
    }

    /// The stores of a role that uses them.
    pub(super) fn stores(&self) -> Result<&Stores> {
        self.stores.as_ref().context("this process has no store")
    }

    fn lanes(&self) -> Vec<Lane> {
        self.config.lanes()
    }

    /// Spawns a role with an internal gRPC service.
    pub(super) fn spawn_internal(
        &self,
        role: Role,
        services: &mut Services,
        listener: Listener,
    ) -> Result<()> {
        match role {
            Role::Graph => self.spawn_graph(services, listener)?,
            Role::Analytics => self.spawn_analytics(services, listener)?,
            Role::Deadletter => self.spawn_deadletter(services, listener)?,
            Role::Scaler => self.spawn_scaler(services, listener),
            _ => {}
        }
        Ok(())
    }

    fn spawn_graph(&self, services: &mut Services, listener: Listener) -> Result<()> {
        let stores = self.stores()?;
        let deps = herald_graph::Deps {
            mesh: self.mesh.for_role("graph"),
            users: stores.users.clone(),
            follows: stores.follows.clone(),
            posts: stores.posts.clone(),
            listener,
            metrics: self.metrics.register(herald_graph::Metrics::new),
        };
        let graph = herald_graph::run(self.config.graph.clone(), deps, services.shutdown());
        services.spawn("graph", graph);
        Ok(())
    }

    fn spawn_scaler(&self, services: &mut Services, listener: Listener) {
        let config = &self.config;
        let deps = herald_scaler::Deps {
            mesh: self.mesh.for_role("scaler"),
            topology: self.topology.clone(),
            workers: herald_scaler::Workers {
                fanout_in_flight_max: config.fanout.posts_in_flight_max,
                slice_recipients_max: config.fanout.slice_recipients_max,
                gate: config.fanout.gate,
                timeline_in_flight_max: config.timeline.chunks_in_flight_max,
                backfill_posts_max: config.timeline.backfill_posts_max,
                push_in_flight_max: config.push.chunks_in_flight_max,
                archive_in_flight_max: config.archive.in_flight_max,
                analytics_posts_in_flight_max: config.analytics.posts_in_flight_max,
                analytics_events_in_flight_max: config.analytics.events_in_flight_max,
            },
            listener,
            metrics: self.metrics.register(herald_scaler::Metrics::new),
        };
        let scaler = herald_scaler::run(config.scaler.clone(), deps, services.shutdown());
        services.spawn("scaler", scaler);
    }

    fn spawn_analytics(&self, services: &mut Services, listener: Listener) -> Result<()> {
        let background = self.background()?;
        let stores = self.stores()?;
        let deps = herald_analytics::Deps {
            mesh: background.mesh.for_role("analytics"),
            topology: self.topology.clone(),
            totals: stores.totals.clone(),
            users: stores.users.clone(),
            leases: stores.leases.clone(),
            objects: None,
            listener,
            metrics: self.metrics.register(herald_analytics::Metrics::new),
        };
        let analytics = herald_analytics::run(self.config.analytics.clone(), deps, services.shutdown());
        services.spawn_on(&background.runtime, "analytics", analytics);
        Ok(())
    }

    fn spawn_deadletter(&self, services: &mut Services, listener: Listener) -> Result<()> {
        let background = self.background()?;
        let stores = self.stores()?.clone();
        let user_data = herald_user_data::UserData {
            mesh: background.mesh.for_role("deadletter"),
            topology: self.topology.clone(),
            stores: stores.clone(),
        };
        let auditor = herald_audit::Auditor {
            mesh: background.mesh.for_role("deadletter"),
            topology: self.topology.clone(),
            users: stores.users.clone(),
            posts: stores.posts,
            timelines: stores.timelines,
            ledger: stores.ledger.clone(),
            totals: stores.totals,
            dead_letters: stores.dead_letters.clone(),
            limits: self.config.audit_limits(),
        };
        let deps = herald_deadletter::Deps {
            mesh: background.mesh.for_role("deadletter"),
            topology: self.topology.clone(),
            users: stores.users,
            ledger: stores.ledger,
            dead_letters: stores.dead_letters,
            leases: stores.leases,
            retention: stores.retention,
            auditor,
            user_data,
            listener,
            metrics: self.metrics.register(herald_deadletter::Metrics::new),
        };
        let deadletter = herald_deadletter::run(self.config.deadletter.clone(), deps, services.shutdown());
        services.spawn_on(&background.runtime, "deadletter", deadletter);
        let broker_state = BrokerState::new(
            background.mesh.clone(),
            self.topology.clone(),
            &self.config,
            self.metrics.register(herald_mesh::BrokerMetrics::new),
        );
        services.spawn_on(
            &background.runtime,
            "broker state",
            broker_state.run(services.shutdown()),
        );
        Ok(())
    }

    pub(super) fn spawn_archive(&self, services: &mut Services) -> Result<()> {
        let deps = herald_archive::Deps {
            mesh: self.mesh.for_role("archive"),
            topology: self.topology.clone(),
            users: self.stores()?.users.clone(),
            erasures: self.stores()?.erasures.clone(),
            posts: self.stores()?.posts.clone(),
            metrics: self.metrics.register(herald_archive::Metrics::new),
        };
        let archive = herald_archive::run(self.config.archive.clone(), deps, services.shutdown());
        services.spawn("archive", archive);
        Ok(())
    }

    pub(super) fn spawn_fanout(&self, services: &mut Services, channels: &Channels) -> Result<()> {
        let deps = herald_fanout::Deps {
            mesh: self.mesh.for_role("fanout"),
            topology: self.topology.clone(),
            lanes: self.lanes(),
            users: self.stores()?.users.clone(),
            ledger: self.stores()?.ledger.clone(),
            graph: channels.to(Role::Graph)?.own,
            metrics: self.metrics.register(herald_fanout::Metrics::new),
        };
        let fanout = herald_fanout::run(self.config.fanout.clone(), deps, services.shutdown());
        services.spawn("fanout", fanout);
        Ok(())
    }

    pub(super) fn spawn_timeline(&self, services: &mut Services) -> Result<()> {
        let stores = self.stores()?;
        let deps = herald_timeline::Deps {
            mesh: self.mesh.for_role("timeline"),
            topology: self.topology.clone(),
            lanes: self.lanes(),
            timelines: stores.timelines.clone(),
            ledger: stores.ledger.clone(),
            posts: stores.posts.clone(),
            metrics: self.metrics.register(herald_timeline::Metrics::new),
        };
        let timeline = herald_timeline::run(self.config.timeline.clone(), deps, services.shutdown());
        services.spawn("timeline", timeline);
        Ok(())
    }

    pub(super) fn spawn_push(&self, services: &mut Services, vapid: Vapid) -> Result<()> {
        let stores = self.stores()?.clone();
        let deps = herald_push::Deps {
            mesh: self.mesh.for_role("push"),
            topology: self.topology.clone(),
            lanes: self.lanes(),
            users: stores.users,
            devices: stores.devices,
            preferences: stores.preferences,
            posts: stores.posts,
            ledger: stores.ledger,
            vapid,
            metrics: self.metrics.register(herald_push::Metrics::new),
        };
        let push = herald_push::run(self.config.push.clone(), deps, services.shutdown());
        services.spawn("push", push);
        Ok(())
    }

    pub(super) fn spawn_gateway(
        &self,
        services: &mut Services,
        listeners: herald_gateway::Listeners,
        channels: &Channels,
        vapid_public_key: Arc<OnceLock<String>>,
    ) -> Result<()> {
        let stores = self.stores()?.clone();
        let deps = herald_gateway::Deps {
            auth: self.config.auth.clone(),
            auth_metrics: self.metrics.register(herald_auth::Metrics::new),
            api_keys: stores.api_keys,
            mesh: self.mesh.for_role("gateway"),
            topology: self.topology.clone(),
            users: stores.users,
            posts: stores.posts,
            devices: stores.devices,
            preferences: stores.preferences,
            timelines: stores.timelines,
            ledger: stores.ledger,
            dead_letters: stores.dead_letters,
            stream_marks: stores.stream_marks,
            listeners,
            graph: channels.to(Role::Graph)?,
            analytics: channels.to(Role::Analytics)?,
            deadletter: channels.to(Role::Deadletter)?,
            vapid: herald_gateway::Vapid {
                public_key: vapid_public_key,
                has_subject: !self.config.push.vapid_subject.is_empty(),
            },
            readiness: self.checks.of(Role::Gateway),
            roles: self.checks.role_groups(),
            draining: self.checks.draining.clone(),
            rpc_metrics: self.rpc_metrics.clone(),
            metrics: self.metrics.register(herald_gateway::Metrics::new),
        };
        let gateway = herald_gateway::run(self.config.gateway.clone(), deps, services.shutdown());
        services.spawn("gateway", gateway);
        Ok(())
    }
}
