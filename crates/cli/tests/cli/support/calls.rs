//! The calls of the fake daemon.

use std::{
    io::{Read, Write},
    sync::Arc,
};

use hostel_model::{ErrorCode, Failure};
use hostel_proto::v1::{self, hostel_server::Hostel};
use tokio_stream::StreamExt;
use tonic::{Request, Response};

use super::{
    fake::Shared,
    tasks::{Answer, Events},
};

pub(super) struct Service(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl Hostel for Service {
    async fn greet(&self, request: Request<v1::GreetRequest>) -> Answer<v1::GreetReply> {
        self.note("greet", &request);
        let generation = self
            .0
            .script
            .lock()
            .unwrap()
            .generation
            .unwrap_or(hostel_model::GENERATION);
        Ok(Response::new(v1::GreetReply {
            generation,
            version: "9.9.9".into(),
            pid: 42,
            home: "/h".into(),
        }))
    }
    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusReply> {
        self.note("status", &request);
        Ok(Response::new(v1::StatusReply {
            version: "9.9.9".into(),
            pid: 42,
            vm: Some(v1::VmStatus {
                state: self.0.script.lock().unwrap().vm_state.clone(),
                ..Default::default()
            }),
            ..Default::default()
        }))
    }
    async fn list(&self, request: Request<v1::ListRequest>) -> Answer<v1::ListReply> {
        self.note("list", &request);
        Ok(Response::new(v1::ListReply {
            distros: self.0.script.lock().unwrap().distros.clone(),
        }))
    }
    async fn inspect(&self, request: Request<v1::InspectRequest>) -> Answer<v1::InspectReply> {
        self.note("inspect", &request);
        let distro = self.0.script.lock().unwrap().distros.first().cloned();
        Ok(Response::new(v1::InspectReply {
            distro,
            ..Default::default()
        }))
    }
    type ImportStream = Events<v1::TaskEvent>;
    async fn import(&self, request: Request<v1::ImportRequest>) -> Answer<Self::ImportStream> {
        self.note("import", &request);
        let shared = Arc::clone(&self.0);
        self.archive_task(move |fd| {
            let mut got = Vec::new();
            std::fs::File::from(fd).read_to_end(&mut got).unwrap();
            let bytes = got.len() as u64;
            shared.script.lock().unwrap().imported = got;
            Ok(v1::TaskDone {
                bytes,
                ..Default::default()
            })
        })
    }
    type ExportStream = Events<v1::TaskEvent>;
    async fn export(&self, request: Request<v1::ExportRequest>) -> Answer<Self::ExportStream> {
        self.note("export", &request);
        let shared = Arc::clone(&self.0);
        self.archive_task(move |fd| {
            let script = shared.script.lock().unwrap();
            std::fs::File::from(fd).write_all(&script.archive).unwrap();
            match &script.task_failure {
                Some(failure) => Err(failure.clone()),
                None => Ok(v1::TaskDone {
                    bytes: script.archive.len() as u64,
                    ..Default::default()
                }),
            }
        })
    }
    type InstallStream = Events<v1::TaskEvent>;
    async fn install(&self, request: Request<v1::InstallRequest>) -> Answer<Self::InstallStream> {
        self.note("install", &request);
        let distro = Some(v1::Distro {
            name: "trixie".into(),
            ..Default::default()
        });
        self.done(v1::TaskDone {
            distro,
            ..Default::default()
        })
    }
    type StartStream = Events<v1::TaskEvent>;
    async fn start(&self, request: Request<v1::StartRequest>) -> Answer<Self::StartStream> {
        self.note("start", &request);
        self.done(v1::TaskDone::default())
    }
    type StopStream = Events<v1::TaskEvent>;
    async fn stop(&self, request: Request<v1::StopRequest>) -> Answer<Self::StopStream> {
        self.note("stop", &request);
        self.done(v1::TaskDone::default())
    }
    type ShutdownStream = Events<v1::TaskEvent>;
    async fn shutdown(
        &self,
        request: Request<v1::ShutdownRequest>,
    ) -> Answer<Self::ShutdownStream> {
        self.note("shutdown", &request);
        self.done(v1::TaskDone {
            stopped: vec!["a".into()],
            ..Default::default()
        })
    }
    async fn remove(&self, request: Request<v1::RemoveRequest>) -> Answer<v1::Empty> {
        self.note("remove", &request);
        Ok(Response::new(v1::Empty {}))
    }
    async fn rename(&self, request: Request<v1::RenameRequest>) -> Answer<v1::Empty> {
        self.note("rename", &request);
        Ok(Response::new(v1::Empty {}))
    }
    async fn set_default(&self, request: Request<v1::SetDefaultRequest>) -> Answer<v1::Empty> {
        self.note("set-default", &request);
        let failure = Failure::new(ErrorCode::DistroNotFound, "no distribution `x\x1b[0m`")
            .hint("run `hostel list`");
        Err(hostel_proto::status_of(&failure))
    }
    type ExecStream = Events<v1::SessionEvent>;
    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<Self::ExecStream> {
        self.note("exec", &request);
        self.session(request.into_inner())
    }
    type AttachStream = Events<v1::SessionEvent>;
    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<Self::AttachStream> {
        self.note("attach", &request);
        let pipe = v1::Stdio::Pipe.into();
        let command = v1::CommandSpec {
            stdin: pipe,
            stdout: pipe,
            stderr: pipe,
            ..Default::default()
        };
        self.session(v1::ExecRequest {
            command: Some(command),
            ..Default::default()
        })
    }
    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Answer<v1::ListSessionsReply> {
        self.note("sessions", &request);
        let sessions = vec![v1::Session {
            id: "s1-abc".into(),
            ..Default::default()
        }];
        Ok(Response::new(v1::ListSessionsReply { sessions }))
    }
    async fn resize(&self, request: Request<v1::ResizeRequest>) -> Answer<v1::Empty> {
        let _ = self.0.nudges.lock().unwrap().send((
            "resize",
            request.into_inner(),
            v1::SignalRequest::default(),
        ));
        Ok(Response::new(v1::Empty {}))
    }
    async fn signal(&self, request: Request<v1::SignalRequest>) -> Answer<v1::Empty> {
        let _ = self.0.nudges.lock().unwrap().send((
            "signal",
            v1::ResizeRequest::default(),
            request.into_inner(),
        ));
        Ok(Response::new(v1::Empty {}))
    }
    type KernelInstallStream = Events<v1::TaskEvent>;
    async fn kernel_install(
        &self,
        request: Request<v1::KernelInstallRequest>,
    ) -> Answer<Self::KernelInstallStream> {
        self.note("kernel-install", &request);
        let kernel = Some(v1::Kernel {
            release: "6.1.0".into(),
            ..Default::default()
        });
        self.done(v1::TaskDone {
            kernel,
            ..Default::default()
        })
    }
    async fn kernel_list(
        &self,
        request: Request<v1::KernelListRequest>,
    ) -> Answer<v1::KernelListReply> {
        self.note("kernel-list", &request);
        Ok(Response::new(v1::KernelListReply::default()))
    }
    async fn kernel_use(&self, request: Request<v1::KernelUseRequest>) -> Answer<v1::Empty> {
        self.note("kernel-use", &request);
        Ok(Response::new(v1::Empty {}))
    }
    async fn network(&self, request: Request<v1::NetworkRequest>) -> Answer<v1::NetworkReply> {
        self.note("network", &request);
        Ok(Response::new(self.0.script.lock().unwrap().network.clone()))
    }
    async fn network_set(
        &self,
        request: Request<v1::NetworkSetRequest>,
    ) -> Answer<v1::NetworkReply> {
        self.note("network-set", &request);
        let request = request.into_inner();
        let mut script = self.0.script.lock().unwrap();
        script.allowed()?;
        let status = script.network.status.get_or_insert_default();
        for (old, new) in [
            (&mut status.subnet, request.subnet),
            (&mut status.gateway, request.gateway),
            (&mut status.address, request.address),
        ] {
            if !new.is_empty() {
                *old = new;
            }
        }
        Ok(Response::new(script.network.clone()))
    }
    async fn firewall(&self, request: Request<v1::FirewallRequest>) -> Answer<v1::FirewallReply> {
        self.note("firewall", &request);
        let request = request.into_inner();
        let mut script = self.0.script.lock().unwrap();
        script.allowed()?;
        let rules = &mut script.firewall.rules;
        rules.retain(|r| !request.clear && !request.remove.contains(&r.number));
        rules.extend(request.add);
        for (number, rule) in (1..).zip(rules) {
            rule.number = number;
        }
        script.firewall.default_action = "deny".into();
        Ok(Response::new(script.firewall.clone()))
    }
    type PortsStream = Events<v1::PortsReply>;
    async fn ports(&self, request: Request<v1::PortsRequest>) -> Answer<Self::PortsStream> {
        self.note("ports", &request);
        let watch = request.into_inner().watch;
        let ledger = tokio_stream::wrappers::WatchStream::new(self.0.ports.subscribe())
            .map(|ports| Ok(v1::PortsReply { ports }));
        Ok(Response::new(if watch {
            Box::pin(ledger)
        } else {
            Box::pin(ledger.take(1))
        }))
    }
    async fn port_policy(
        &self,
        request: Request<v1::PortPolicyRequest>,
    ) -> Answer<v1::PortPolicyReply> {
        self.note("port-policy", &request);
        let request = request.into_inner();
        let mut script = self.0.script.lock().unwrap();
        script.allowed()?;
        let gone = [&request.set[..], &request.unset[..]].concat();
        let about = |r: &v1::PortRule| (r.distro.clone(), r.port, r.protocol.clone());
        let rules = &mut script.port_rules;
        rules.retain(|r| gone.iter().all(|g| about(g) != about(r)));
        rules.extend(request.set);
        Ok(Response::new(v1::PortPolicyReply {
            rules: rules.clone(),
            listen: "127.0.0.1, ::1".into(),
            forwarding: true,
        }))
    }
    async fn manage(&self, request: Request<v1::ManageRequest>) -> Answer<v1::ManageReply> {
        self.note("manage", &request);
        let request = request.into_inner();
        let mut script = self.0.script.lock().unwrap();
        script.allowed()?;
        if !request.network.is_empty() {
            script.managed.network = request.network;
            script.managed.address = request.address;
        }
        Ok(Response::new(script.managed.clone()))
    }
    type LogsStream = Events<v1::LogChunk>;
    async fn logs(&self, request: Request<v1::LogsRequest>) -> Answer<Self::LogsStream> {
        self.note("logs", &request);
        let chunks = ["a\n", "b\n"].map(|t| Ok(v1::LogChunk { data: t.into() }));
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }
    async fn doctor(&self, request: Request<v1::DoctorRequest>) -> Answer<v1::DoctorReply> {
        self.note("doctor", &request);
        Ok(Response::new(v1::DoctorReply {
            checks: self.0.script.lock().unwrap().checks.clone(),
        }))
    }
    async fn quit(&self, request: Request<v1::QuitRequest>) -> Answer<v1::Empty> {
        self.note("quit", &request);
        Ok(Response::new(v1::Empty {}))
    }
}
