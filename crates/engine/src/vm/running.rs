//! A running VM: its agent, how it is settled, and what a failed call to it means.

use std::{sync::Arc, time::Duration};

use hostel_model::{DistroId, ErrorCode, Failure, Token};
use hostel_proto::{
    Guarded, failure_of,
    v1::{self, agent_client::AgentClient},
};
use tokio::sync::watch;
use tonic::{Code, Status, transport::Channel};

use super::{QUESTION, Running, SETTLE, crashed};
use crate::{engine::lock, network::Live};

/// How long the end of the VM may lag behind the end of a call to its agent.
const END_LAG: Duration = Duration::from_secs(3);

impl Running {
    /// Returns a client of the agent.
    pub(crate) fn agent(&self) -> AgentClient<Guarded<Channel>> {
        lock(&self.agent).clone()
    }

    /// Tells when another agent has taken the place of a lost one.
    pub(crate) fn agents(&self) -> watch::Receiver<u32> {
        self.agents.subscribe()
    }

    /// Returns the network; `None`: there is none.
    pub(crate) fn network(&self) -> Option<&Arc<Live>> {
        self.network.as_ref()
    }

    /// Settles the machine again after a change of its network, once the first settling is done.
    pub(crate) async fn configure_again(&self) -> Result<Vec<String>, Failure> {
        self.wait_settled(&mut Vec::new()).await?;
        let mut agent = self.agent();
        tokio::time::timeout(SETTLE, self.configure(&mut agent))
            .await
            .map_err(|_| unsettled())?
            .map_err(|s| failure_of(&s))
    }

    /// Turns a failed call to the agent into what the user is told; when the VM ended, that is the reason.
    ///
    /// Waits a little for the news of that end.
    pub(crate) async fn failure(&self, status: Status) -> Failure {
        let transport = matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
        ) && status.metadata().get("hostel-code").is_none();
        if transport && let Some(how) = self.ended_within(END_LAG).await {
            return crashed(&how);
        }
        let failure = failure_of(&status);
        if transport {
            return Failure::new(
                ErrorCode::VmHung,
                format!("the agent in the VM does not answer: {failure}"),
            )
            .hint("hostel shutdown --force")
            .hint("hostel logs console");
        }
        failure
    }

    /// Waits until the VM has ended and says how; `None` when it has not ended in time.
    pub(crate) async fn ended_within(&self, time: Duration) -> Option<String> {
        let mut end = self.end.subscribe();
        let ended = tokio::time::timeout(time, end.wait_for(Option::is_some))
            .await
            .ok()?
            .ok()?;
        ended.clone()
    }

    /// Waits until the machine has its clock, names and network. Whoever is first gets what there is to say about it.
    pub(crate) async fn wait_settled(&self, warnings: &mut Vec<String>) -> Result<(), Failure> {
        let mut settled = self.settled.subscribe();
        tokio::select! {
            biased;
            Ok(result) = settled.wait_for(Option::is_some) => result.clone().unwrap_or(Ok(()))?,
            () = self.gone.cancelled() => {
                return Err(crashed(&self.end.borrow().clone().unwrap_or_default()));
            }
        }
        warnings.append(&mut lock(&self.remarks));
        Ok(())
    }

    /// Settles a machine that has just started; one that cannot be settled is of no use and is killed.
    pub(super) async fn settle(self: Arc<Self>, mut agent: AgentClient<Guarded<Channel>>) {
        let result = match tokio::time::timeout(SETTLE, self.configure(&mut agent)).await {
            Ok(Ok(warnings)) => {
                *lock(&self.remarks) = warnings;
                Ok(())
            }
            Ok(Err(status)) => Err(self.failure(status).await),
            Err(_) => Err(unsettled()),
        };
        let failed = result.is_err();
        self.settled.send_replace(Some(result));
        if failed {
            self.machine.kill().await;
        }
    }

    /// Asks about a running distribution.
    pub(crate) async fn inspect(&self, id: DistroId) -> Result<v1::InspectDistroReply, Failure> {
        let mut agent = self.agent();
        let question = agent.inspect_distro(v1::InspectDistroRequest { id: id.to_string() });
        self.call(QUESTION, "a question about a distribution", question)
            .await
    }

    /// Awaits a call to the agent for a limited time.
    pub(crate) async fn call<T>(
        &self,
        time: Duration,
        what: &str,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            () = self.gone.cancelled() => Err(crashed(&self.end.borrow().clone().unwrap_or_default())),
            answer = tokio::time::timeout(time, call) => match answer {
                Ok(Ok(reply)) => Ok(reply.into_inner()),
                Ok(Err(status)) => Err(self.failure(status).await),
                Err(_) => Err(Failure::new(
                    ErrorCode::VmHung,
                    format!("the agent in the VM did not answer {what} within {} s", time.as_secs()),
                )
                .hint("hostel shutdown --force")
                .hint("hostel logs console")),
            },
        }
    }

    /// Settles the machine; time and entropy are those of this moment.
    pub(super) async fn configure(
        &self,
        agent: &mut AgentClient<Guarded<Channel>>,
    ) -> Result<Vec<String>, Status> {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let mut entropy = Token::new_random().as_bytes().to_vec();
        let mut fresh = [0; 32];
        if rustix::rand::getrandom(&mut fresh, rustix::rand::GetRandomFlags::empty())
            .is_ok_and(|n| n == fresh.len())
        {
            entropy = fresh.to_vec();
        }
        let request = v1::ConfigureRequest {
            time_unix_ns: now.as_nanos() as u64,
            entropy: entropy.into(),
            network: self.network.as_ref().map(|n| n.tell_guest()),
            ..self.configure.clone()
        };
        Ok(agent.configure(request).await?.into_inner().warnings)
    }
}

/// Says that an agent takes too long.
fn unsettled() -> Failure {
    Failure::new(
        ErrorCode::VmStart,
        format!(
            "the agent in the VM did not settle within {} s",
            SETTLE.as_secs()
        ),
    )
    .hint("hostel logs console")
}
