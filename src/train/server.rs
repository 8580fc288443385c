//! The rounds: local training, clipping, mean.

use super::checked::{self, Check};
use super::client::Client;
use super::data::{Examples, Split};
use super::outcome::{Comparison, NormFigures, Outcome, Progress, Run};
use super::random::{Stream, generator};
use super::settings::{ClipAt, Training};
use crate::attack::AdversaryMode;
use crate::backend::Backend;
use crate::batch::Layout;
use crate::clip::{Clipping, Scope, Status};
use crate::error::Result;
use crate::norms::Norm;
use crate::report::Report;
use crate::threshold::State;

impl Training {
    /// Trains for all rounds; `progress` is called after each.
    ///
    /// Norms and clipping go through the backend, and in the last round their results are held against
    /// [`Reference`](crate::Reference), bit for bit. Same settings, same bits, on every backend and
    /// platform. The global model may become Inf or NaN where an attack is not clipped; that is an
    /// outcome, not an error, see [`Outcome::accuracy`].
    ///
    /// # Errors
    /// Those of [`Training::validate`] and of the backend; [`Error::Mismatch`](crate::Error::Mismatch)
    /// where the last round's results are not those of the reference.
    ///
    /// # Examples
    /// ```
    /// use byzclip::Cpu;
    /// use byzclip::train::Training;
    ///
    /// let training = Training { rounds: 2, ..Training::default() };
    /// let outcome = training.run(&Cpu::new()?, &mut |at| println!("round {} of {}", at.round, at.rounds))?;
    /// assert_eq!(outcome.clipped, 2 * training.hostile_clients());
    /// # Ok::<(), byzclip::Error>(())
    /// ```
    pub fn run(&self, backend: &dyn Backend, progress: &mut dyn FnMut(Progress)) -> Result<Outcome> {
        self.validate()?;
        let mut server = Server::new(self, backend)?;
        for round in 1..=self.rounds {
            let check = if round == self.rounds { Check::Reference } else { Check::Nothing };
            let accuracy = server.round(check)?;
            progress(Progress { round, rounds: self.rounds, accuracy });
        }
        Ok(server.outcome())
    }

    /// Trains three times with these settings: without the attack, with it and no clipping, with it and
    /// clipping. Data, initial model and batches are the same in all of them.
    ///
    /// Where [`Training::threshold`] is `None`, the third run is the second once more.
    ///
    /// # Errors
    /// Those of [`Training::run`].
    pub fn compare(
        &self,
        backend: &dyn Backend,
        progress: &mut dyn FnMut(Run, Progress),
    ) -> Result<Comparison> {
        let mut outcome = |run| self.settings_of(run).run(backend, &mut |at| progress(run, at));
        Ok(Comparison {
            no_attack: outcome(Run::NoAttack)?,
            attack: outcome(Run::Attack)?,
            attack_clipped: outcome(Run::AttackClipped)?,
        })
    }

    /// These settings as this run of [`Training::compare`] changes them.
    fn settings_of(&self, run: Run) -> Self {
        match run {
            Run::NoAttack => Self { attack: AdversaryMode::None, threshold: None, ..self.clone() },
            Run::Attack => Self { threshold: None, ..self.clone() },
            Run::AttackClipped => self.clone(),
        }
    }
}

struct Server<'a> {
    training: &'a Training,
    backend: &'a dyn Backend,
    clients: Vec<Client>,
    test: Examples,
    /// `[clients, params]`, of updates and of gradients.
    layout: Layout,
    /// The global model, `[params]`.
    model: Vec<f32>,
    clip_updates: Option<Clipping>,
    clip_gradients: Option<Clipping>,
    /// What the threshold remembers, at the place where clipping happens.
    state: State,
    record: Record,
}

/// What the outcome is made of.
#[derive(Default)]
struct Record {
    accuracies: Vec<f64>,
    honest: Vec<Norm>,
    hostile: Vec<Norm>,
    gradients: Vec<Norm>,
    clipped: usize,
    zeroed: usize,
}

impl<'a> Server<'a> {
    fn new(training: &'a Training, backend: &'a dyn Backend) -> Result<Self> {
        let split = Split::new(training.seed, training.clients)?;
        let clients = training.modes().into_iter().zip(split.clients).enumerate();
        Ok(Self {
            clients: clients
                .map(|(index, (mode, examples))| Client::new(training.seed, index, mode, examples))
                .collect(),
            test: split.test,
            layout: training.layout()?,
            model: training.model.initial(&mut generator(training.seed, Stream::Model)),
            clip_updates: training.clipping(ClipAt::Server),
            clip_gradients: training.clipping(ClipAt::LocalStep),
            state: State::default(),
            record: Record::default(),
            training,
            backend,
        })
    }

    /// One round; the accuracy after it.
    fn round(&mut self, check: Check) -> Result<f64> {
        let mut updates = self.updates(check)?;
        self.record_updates(&updates, check)?;
        if let Some(clipping) = &self.clip_updates {
            let report =
                checked::clip(self.backend, &self.layout, &mut updates, clipping, &mut self.state, check)?;
            self.record.count(&report);
        }
        self.step_by_mean(&updates);
        let accuracy = self.training.model.accuracy(&self.model, &self.test);
        self.record.accuracies.push(accuracy);
        Ok(accuracy)
    }

    /// What the clients send: local minus global parameters, `[clients, params]`.
    fn updates(&mut self, check: Check) -> Result<Vec<f32>> {
        let mut locals = self.model.repeat(self.clients.len());
        for step in 1..=self.training.local_steps {
            // One step is enough to be checked, and the last is the one furthest from the common start.
            let check = if step == self.training.local_steps { check } else { Check::Nothing };
            let gradients = self.gradients(&locals, check)?;
            let rate = self.training.learning_rate;
            locals.iter_mut().zip(&gradients).for_each(|(w, g)| *w -= rate * g);
        }
        let global = self.model.iter().cycle();
        locals.iter_mut().zip(global).for_each(|(local, global)| *local -= global);
        Ok(locals)
    }

    /// The clients' gradients of one local step, clipped if that is the place, `[clients, params]`.
    fn gradients(&mut self, locals: &[f32], check: Check) -> Result<Vec<f32>> {
        let mut gradients = vec![0.0; locals.len()];
        for (index, client) in self.clients.iter_mut().enumerate() {
            let row = self.layout.row(index);
            client.gradient(self.training, &locals[row.clone()], &mut gradients[row]);
        }
        if let Some(clipping) = &self.clip_gradients {
            let norms = checked::norms(self.backend, &self.layout, &gradients, &clipping.scope, check)?;
            self.record.gradients.extend(norms);
            let report =
                checked::clip(self.backend, &self.layout, &mut gradients, clipping, &mut self.state, check)?;
            self.record.count(&report);
        }
        Ok(gradients)
    }

    fn record_updates(&mut self, updates: &[f32], check: Check) -> Result<()> {
        let norms = checked::norms(self.backend, &self.layout, updates, &Scope::All, check)?;
        for (client, norm) in self.clients.iter().zip(norms) {
            let of = &mut self.record;
            if client.mode().is_hostile() { &mut of.hostile } else { &mut of.honest }.push(norm);
        }
        Ok(())
    }

    /// Moves the global model by the mean of the updates, summed in the order of the rows.
    fn step_by_mean(&mut self, updates: &[f32]) {
        let mut sums = vec![0.0f64; self.model.len()];
        for row in 0..self.clients.len() {
            let update = &updates[self.layout.row(row)];
            sums.iter_mut().zip(update).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        let clients = self.clients.len() as f64;
        for (parameter, sum) in self.model.iter_mut().zip(sums) {
            let moved = (f64::from(*parameter) + sum / clients) as f32;
            // The sign and payload of a computed NaN differ between processors.
            *parameter = if moved.is_nan() { f32::NAN } else { moved };
        }
    }

    fn outcome(self) -> Outcome {
        let record = self.record;
        Outcome {
            accuracy: record.accuracies.last().copied().unwrap_or_default(),
            accuracies: record.accuracies,
            honest: NormFigures::of(&record.honest),
            hostile: NormFigures::of(&record.hostile),
            gradients: NormFigures::of(&record.gradients),
            clipped: record.clipped,
            zeroed: record.zeroed,
            model: self.model,
            ran: self.backend.ran(),
        }
    }
}

impl Record {
    fn count(&mut self, report: &Report) {
        self.clipped += report.count(Status::Clipped);
        self.zeroed += report.count(Status::Zeroed);
    }
}
