package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/writ-mesh/writ/ca/handover"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/ca/roots"
)

// The prefixes of the documents by which authorities over one ledger know of each
// other.
const (
	// announcedPrefix: who there is, by the id of its key.
	announcedPrefix = "replicas/"
	// parcelPrefix: keys of roots on their way, by key id.
	parcelPrefix = "handover/"
	// heardPrefix: what each hears of its watchers during a rotation, by session.
	heardPrefix = "rotation/"
	// leaseName is the last part of the key of a session's lease.
	leaseName = "lease"
)

const (
	// beat is how often an authority says during a rotation that it lives, and life how
	// long it is believed after that.
	beat, life = 15 * time.Second, 45 * time.Second
	// firstPause and lastPause are the waits between tellings in one step of a rotation:
	// in the first seconds everybody has news, later nobody should.
	firstPause, lastPause = 250 * time.Millisecond, 4 * time.Second
	// expected is how long a step waits for authorities that are announced and have not
	// been heard of in this rotation.
	expected = 5 * time.Second
	// goodbye bounds how long an authority that ends tells the others of it.
	goodbye = time.Second
	// maxReplicas bounds those to which a key is handed over.
	maxReplicas = 64
	// maxTelling bounds the documents of one change, in bytes.
	maxTelling = 128 << 10
)

// nobody is the name that no replica has, for a key that is handed over to none.
const nobody = "none"

// replicas is what an authority knows of the others over the same ledger, and tells
// them. A nil one is that of an authority alone.
type replicas struct {
	k     *keeper
	pairs *handover.Pairs
	host  string
	// session names this process among those that tell of their watchers.
	session string
	// say has a token when there may be something to tell.
	say chan struct{}

	// What run alone uses: under which root it is announced, and what it told last.
	under string
	said  telling

	mu sync.Mutex
	// id is that of the announcement.
	id string
	// known are the announcements of all by id; nil until they were read.
	known map[string]json.RawMessage
	// heard is what others tell, by session; listened says that it was read whole.
	heard    map[string]*session
	listened bool
}

// session is another authority's telling.
type session struct {
	lease lease
	parts map[string]heardPart
	// version is the lease's document's, and seen when that was seen first.
	version uint64
	seen    time.Time
	// found: the lease has not changed since this authority looks, and may be a dead
	// process's. It is waited for, and its word does not count.
	found bool
}

// lease is the document by which an authority says during a rotation that it lives.
type lease struct {
	ID   string `json:"id"`
	Host string `json:"host"`
	// Roots is the version of the state of the roots that it has put into force.
	Roots uint64 `json:"roots"`
	// Lacks is why it cannot sign with the key of the new root.
	Lacks string    `json:"lacks,omitempty"`
	At    time.Time `json:"at"`
}

// heardPart is a part of what an authority hears of its watchers.
type heardPart struct {
	// Roots is the version of the state of the roots that it is about.
	Roots uint64 `json:"roots"`
	roots.Told
}

// telling is what was told last.
type telling struct {
	lease lease
	at    time.Time
	parts [roots.Parts]struct {
		text  string
		roots uint64
	}
}

func openReplicas(k *keeper) (*replicas, error) {
	pairs, err := handover.Open(filepath.Join(k.dir, handover.File))
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	var name [8]byte
	if _, err := rand.Read(name[:]); err != nil {
		return nil, err
	}
	return &replicas{k: k, pairs: pairs, host: host, session: hex.EncodeToString(name[:]), say: make(chan struct{}, 1), heard: make(map[string]*session)}, nil
}

// news has run look whether there is something to tell.
func (r *replicas) news() {
	if r == nil {
		return
	}
	select {
	case r.say <- struct{}{}:
	default:
	}
}

// take takes the key of a root over that another authority made; nil if none was handed
// over to this one.
func (r *replicas) take(ctx context.Context, cert *x509.Certificate) (crypto.Signer, error) {
	if r == nil {
		return nil, nil
	}
	keyID := root.KeyID(cert)
	doc, err := r.k.store.Get(ctx, parcelPrefix+keyID)
	if errors.Is(err, ledger.ErrNoDocument) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", keyID, err)
	}
	secret, err := r.pairs.Unseal(doc.Value, r.k.spec.TrustDomain.Name(), keyID)
	if errors.Is(err, handover.ErrNotAddressed) {
		return nil, nil
	}
	if err == nil {
		var key crypto.Signer
		if key, err = root.Import(r.k.dir, cert, secret); err == nil {
			r.k.log.InfoContext(ctx, "the key of a root was handed over by another authority", slog.String("root", keyID))
			return key, nil
		}
	}
	return nil, fmt.Errorf("root %s: %w", keyID, err)
}

// handOver adds to a change that begins a rotation what gives the new root's key to the
// others: those that are announced, or of them those that were named.
func (r *replicas) handOver(ctx context.Context, e *event, s roots.State, next roots.Authority, how roots.How, to []string) error {
	if r == nil || next.Key != "" { // a key manager is there for all
		return nil
	}
	docs, err := r.k.store.List(ctx, announcedPrefix)
	if err != nil {
		return err
	}
	e.with.If = make(map[string]uint64)
	var there, given []handover.Replica
	for _, d := range docs {
		one, err := r.parse(d.Value, s)
		switch {
		case err != nil:
			// Of a root of before, or nobody's: it would never be given anything.
			r.k.log.WarnContext(ctx, "a replica is not handed the new root's key", slog.String("document", d.Key), slog.Any("error", err))
			e.with.Delete = append(e.with.Delete, d.Key)
			continue
		case one.ID == r.announced(): // so that nobody adds it
			given = append(given, one)
			continue
		}
		there = append(there, one)
		if to == nil || slices.Contains(to, one.ID) {
			given = append(given, one)
			e.with.If[d.Key] = d.Version // it may be forgetting that pair just now
		}
	}
	if err := fits(there, len(e.with.If), how, to); err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(next.Certificate)
	if err != nil {
		return err
	}
	secret, err := root.Export(r.k.dir, cert)
	if err != nil {
		return err
	}
	parcel, err := handover.Seal(r.k.spec.TrustDomain.Name(), next.KeyID, secret, given)
	if err != nil {
		return err
	}
	parcel.Closed = to != nil
	data, err := json.Marshal(parcel)
	if err != nil {
		return err
	}
	e.with.Put = map[string][]byte{parcelPrefix + next.KeyID: data}
	return nil
}

// mayBeCompromised refuses to go on as after a theft with a root whose key was handed
// over to everybody, who may be the thief.
func (r *replicas) mayBeCompromised(ctx context.Context, under *roots.Rotation, how roots.How) error {
	if r == nil || !how.Compromised || under.Compromised || under.Step != roots.Distributing {
		return nil
	}
	doc, err := r.k.store.Get(ctx, parcelPrefix+under.New)
	if errors.Is(err, ledger.ErrNoDocument) {
		return nil
	}
	if err != nil {
		return err
	}
	parcel, err := handover.ParseParcel(doc.Value)
	if err == nil && (parcel.Closed || len(parcel.To) < 2) { // itself
		return nil
	}
	return fmt.Errorf("%w: the new root's key was handed over to every replica, and who has the old one's can announce one: writ roots abort, and then writ roots rotate --compromised --replica ID", roots.ErrRefused)
}

// addLate hands the new root's key over to those who have been announced since the
// rotation began.
func (r *replicas) addLate(ctx context.Context, t *trust) error {
	next, _ := t.state.Authority(t.state.Rotation.New)
	if t.state.Rotation.Step != roots.Distributing || next.Key != "" || r.k.outside.signsFor(next.KeyID) {
		return nil
	}
	doc, err := r.k.store.Get(ctx, parcelPrefix+next.KeyID)
	if err != nil {
		return err
	}
	parcel, err := handover.ParseParcel(doc.Value)
	if err != nil || parcel.Closed {
		return err
	}
	var late []handover.Replica
	for id, data := range r.announcements() {
		if _, given := parcel.To[id]; given || len(parcel.To)+len(late) > maxReplicas {
			continue
		}
		if one, err := r.parse(data, t.state); err == nil && one.ID == id {
			late = append(late, one)
		}
	}
	if len(late) == 0 {
		return nil
	}
	cert, err := x509.ParseCertificate(next.Certificate)
	if err != nil {
		return err
	}
	secret, err := root.Export(r.k.dir, cert)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // who has it adds them
	}
	if err == nil {
		err = parcel.Add(r.k.spec.TrustDomain.Name(), next.KeyID, secret, late)
	}
	if err != nil {
		return err
	}
	data, err := json.Marshal(parcel)
	if err != nil {
		return err
	}
	_, err = r.k.store.Commit(ctx, ledger.Change{
		If: map[string]uint64{rootsDocument: t.version, doc.Key: doc.Version}, Put: map[string][]byte{doc.Key: data},
		Entry: ledger.Entry{Kind: ledger.Announced, Time: r.k.now().UTC(), Actor: selfActor, Subject: late[0].ID, Authority: next.KeyID, Detail: map[string]string{"step": "key handed over"}},
	})
	return err
}

// announcements are those that are known.
func (r *replicas) announcements() map[string]json.RawMessage {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.known)
}

// fits says whether those that are given the key are those that are wanted.
func fits(there []handover.Replica, given int, how roots.How, to []string) error {
	var names []string
	for _, one := range there {
		names = append(names, one.Name())
	}
	all := strings.Join(names, ", ")
	switch {
	case how.Compromised && to == nil && len(there) > 0:
		return fmt.Errorf("%w: who has the old root's key can announce a replica, and would be handed the new one: name those that are yours (writ roots rotate --compromised --replica ID, or --replica none); there are %s", roots.ErrRefused, all)
	case given > maxReplicas:
		return fmt.Errorf("%w: there are %d other replicas, %d are the most", roots.ErrRefused, given, maxReplicas)
	case len(to) != given && to != nil && !slices.Equal(to, []string{nobody}):
		return fmt.Errorf("%w: there is no replica for each of %s; there are %s", roots.ErrRefused, strings.Join(to, ", "), all)
	}
	return nil
}

// parse reads an announcement, which has to be under the root that signs.
func (r *replicas) parse(data []byte, s roots.State) (handover.Replica, error) {
	active, _ := s.Authority(s.Active)
	cert, err := x509.ParseCertificate(active.Certificate)
	if err != nil {
		return handover.Replica{}, fmt.Errorf("root %s: %w", s.Active, err)
	}
	return handover.ParseReplica(data, r.k.spec.TrustDomain.Name(), s.Active, cert)
}

// announced is the id under which this authority is announced.
func (r *replicas) announced() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.id
}

// cleared adds to a change of the roots that what was for a rotation, or for a root that
// is dropped, goes with it.
func (r *replicas) cleared(ctx context.Context, e *event, before, after roots.State) error {
	if r == nil {
		return nil
	}
	for _, a := range before.Authorities {
		if _, still := after.Authority(a.KeyID); !still {
			if _, err := r.k.store.Get(ctx, parcelPrefix+a.KeyID); err == nil {
				e.with.Delete = append(e.with.Delete, parcelPrefix+a.KeyID)
			}
		}
	}
	if (before.Rotation == nil) == (after.Rotation == nil) {
		return nil
	}
	docs, err := r.k.store.List(ctx, heardPrefix)
	for _, d := range docs {
		e.with.Delete = append(e.with.Delete, d.Key)
	}
	return err
}

// run announces this authority, and tells during a rotation what it hears, until ctx
// ends.
func (r *replicas) run(ctx context.Context) error {
	defer r.leave(context.WithoutCancel(ctx))
	var problem string
	pause := firstPause
	for {
		t := r.k.a.trusted()
		err := r.announce(ctx, t)
		if err == nil && t.state.Rotation != nil {
			err = errors.Join(r.addLate(ctx, t), r.sayWhatIsHeard(ctx, t))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, ledger.ErrConflict) {
			err = nil // the roots are others by now
		}
		if err != nil && err.Error() != problem {
			r.k.log.WarnContext(ctx, "other authorities are not told of this one, will try again", slog.Any("error", err))
		}
		problem = ""
		if err != nil {
			problem = err.Error()
		}
		if pause, err = r.rest(ctx, t, pause); err != nil {
			return err
		}
	}
}

// leave takes back what was told, so that nobody waits for it.
func (r *replicas) leave(ctx context.Context) {
	if r.k.a.trusted().state.Rotation == nil || r.said.at.IsZero() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, goodbye)
	defer cancel()
	gone := []string{heardPrefix + r.session + "/" + leaseName}
	for i, p := range r.said.parts {
		if p.text != "" {
			gone = append(gone, r.partKey(i))
		}
	}
	_, err := r.k.store.Commit(ctx, ledger.Change{
		Entry: ledger.Entry{Kind: ledger.Heard, Time: r.k.now().UTC(), Actor: selfActor, Detail: map[string]string{"replica": r.announced(), "host": r.host, "step": "leaves"}}, Delete: gone,
	})
	if err != nil {
		r.k.log.InfoContext(ctx, "other authorities are not told that this one ends; they find out", slog.Any("error", err))
	}
}

// partKey is the key of a part of what this authority tells.
func (r *replicas) partKey(i int) string { return fmt.Sprintf("%s%s/%d", heardPrefix, r.session, i) }

// rest waits until there may be something to say again, at least for a pause; it gives
// the next one.
func (r *replicas) rest(ctx context.Context, t *trust, pause time.Duration) (time.Duration, error) {
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-t.replaced:
		return firstPause, nil
	case <-time.After(pause):
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-t.replaced:
		return firstPause, nil
	case <-r.say:
	case <-time.After(beat - pause):
	}
	return min(2*pause, lastPause), nil
}

// announce puts this authority among those that are handed keys, after each start and
// each replacement of the root. Who signs with another's root needs none.
func (r *replicas) announce(ctx context.Context, t *trust) error {
	active, _ := t.state.Authority(t.state.Active)
	if r.k.outside.signsFor(active.KeyID) || active.Key != "" || r.under == active.KeyID && r.there() {
		return nil
	}
	cert, err := x509.ParseCertificate(active.Certificate)
	if err != nil {
		return err
	}
	key, err := r.k.ownKey(ctx, cert)
	if err != nil {
		return err
	}
	// What was sealed to the pair of before has to be taken before that is forgotten.
	if lacks := r.lacks(ctx, t); errors.Is(lacks, ledger.ErrUnavailable) {
		return lacks
	}
	public, former, err := r.pairs.Renew()
	if err != nil {
		return err
	}
	one, err := handover.Announce(r.k.spec.TrustDomain.Name(), r.host, active.KeyID, key, public, r.k.now())
	if err != nil {
		return err
	}
	data, err := json.Marshal(one)
	if err != nil {
		return err
	}
	c := ledger.Change{
		If: map[string]uint64{rootsDocument: t.version}, Put: map[string][]byte{announcedPrefix + one.ID: data},
		Entry: ledger.Entry{Kind: ledger.Announced, Time: r.k.now().UTC(), Actor: selfActor, Subject: one.ID, Authority: active.KeyID, Detail: map[string]string{"host": one.Host}},
	}
	if former != "" {
		c.Delete = []string{announcedPrefix + former}
	}
	if _, err := r.k.store.Commit(ctx, c); err != nil {
		return err
	}
	r.mu.Lock()
	r.id = one.ID
	if r.known != nil {
		r.known[one.ID] = data
	}
	r.mu.Unlock()
	r.under = active.KeyID
	return r.pairs.Settle()
}

// there tells whether the announcement is still in the ledger: who has a copy of this
// authority's files took it for his own.
func (r *replicas) there() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known == nil || r.known[r.id] != nil
}

// lacks is why this authority could not sign with the new root's key, nil if it could or
// there is none. The key is on disk then.
func (r *replicas) lacks(ctx context.Context, t *trust) error {
	if t.state.Rotation == nil {
		return nil
	}
	next, _ := t.state.Authority(t.state.Rotation.New)
	cert, err := x509.ParseCertificate(next.Certificate)
	if err == nil {
		_, err = r.k.loadSigner(ctx, cert)
	}
	return err
}

// sayWhatIsHeard writes down what changed of what the watchers say, and now and then
// that this authority lives.
func (r *replicas) sayWhatIsHeard(ctx context.Context, t *trust) error {
	now := r.k.now()
	l := lease{ID: r.announced(), Host: r.host, Roots: t.version, At: now.UTC()}
	if err := r.lacks(ctx, t); err != nil {
		r.k.log.WarnContext(ctx, "the key of the new root is not here", slog.Any("error", err))
		l.Lacks = "it has no key of it, as its log says"
	}
	f := roots.Facts{Reports: r.k.watched()}
	r.k.byRoot(f)
	next, put := r.said, make(map[string][]byte)
	for i, told := range roots.Tell(t.state, f.Reports) {
		data, err := json.Marshal(heardPart{Roots: t.version, Told: told})
		if err != nil {
			return err
		}
		was := r.said.parts[i]
		empty := len(told.Fine)+len(told.Behind)+len(told.Using)+len(told.Reports) == 0
		if string(data) == was.text || empty && was.roots != t.version {
			continue // nothing new, or nothing at all in this step
		}
		next.parts[i].text, next.parts[i].roots = string(data), t.version
		put[r.partKey(i)] = data
	}
	last := r.said.lease
	if len(put) == 0 && last.Roots == l.Roots && last.Lacks == l.Lacks && last.ID == l.ID && now.Sub(r.said.at) < beat {
		return nil
	}
	next.lease, next.at = l, now
	if err := r.commit(ctx, t, put, l); err != nil {
		return err
	}
	r.said = next
	return nil
}

// commit writes parts in changes that are not too large, and the lease with the last of
// them.
func (r *replicas) commit(ctx context.Context, t *trust, put map[string][]byte, l lease) error {
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	flush := func(put map[string][]byte) error {
		_, err := r.k.store.Commit(ctx, ledger.Change{
			// By who has another state nothing is heard.
			If: map[string]uint64{rootsDocument: t.version}, Put: put,
			Entry: ledger.Entry{Kind: ledger.Heard, Time: r.k.now().UTC(), Actor: selfActor, Subject: t.state.Rotation.New, Detail: map[string]string{"replica": l.ID, "host": l.Host}},
		})
		return err
	}
	batch, size := make(map[string][]byte), 0
	for key, value := range put {
		if size+len(value) > maxTelling && size > 0 {
			if err := flush(batch); err != nil {
				return err
			}
			batch, size = make(map[string][]byte), 0
		}
		batch[key] = value
		size += len(value)
	}
	batch[heardPrefix+r.session+"/"+leaseName] = data
	return flush(batch)
}

// follow hears what others tell, until ctx ends.
func (r *replicas) follow(ctx context.Context) error {
	failed := func(err error) {
		r.k.log.WarnContext(ctx, "nothing is heard of other authorities over the same ledger, will try again", slog.Any("error", err))
	}
	return watchDocuments(ctx, r.k.store, heardPrefix, rootsWait, rootsWait, failed, func(u ledger.Update, all bool) error {
		r.hear(u, all)
		r.k.wake()
		return nil
	})
}

// followAnnouncements keeps who is announced, until ctx ends.
func (r *replicas) followAnnouncements(ctx context.Context) error {
	failed := func(err error) {
		r.k.log.WarnContext(ctx, "nothing is heard of which authorities there are, will try again", slog.Any("error", err))
	}
	return watchDocuments(ctx, r.k.store, announcedPrefix, rootsWait, rootsWait, failed, func(u ledger.Update, all bool) error {
		r.mu.Lock()
		if all {
			r.known = make(map[string]json.RawMessage)
		}
		for _, d := range u.Put {
			r.known[strings.TrimPrefix(d.Key, announcedPrefix)] = d.Value
		}
		for _, key := range u.Deleted {
			delete(r.known, strings.TrimPrefix(key, announcedPrefix))
		}
		r.mu.Unlock()
		r.news()
		return nil
	})
}

// hear takes what changed among the documents of those who tell; all tells that they are
// all there are.
func (r *replicas) hear(u ledger.Update, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	former := r.heard
	if all {
		r.heard, r.listened = make(map[string]*session), true
	}
	for _, d := range u.Put {
		name, part, _ := strings.Cut(strings.TrimPrefix(d.Key, heardPrefix), "/")
		if name == r.session {
			continue
		}
		s := r.heard[name]
		if s == nil {
			s = &session{parts: make(map[string]heardPart)}
			if was := former[name]; was != nil {
				s.version, s.seen, s.found = was.version, was.seen, was.found
			}
			r.heard[name] = s
		}
		if part == leaseName {
			s.renewed(d, all, r.k.now())
			continue
		}
		var p heardPart
		if err := json.Unmarshal(d.Value, &p); err != nil {
			delete(s.parts, part) // and its watchers are waited for
			continue
		}
		s.parts[part] = p
	}
	for _, key := range u.Deleted {
		name, part, _ := strings.Cut(strings.TrimPrefix(key, heardPrefix), "/")
		if s := r.heard[name]; s != nil {
			delete(s.parts, part)
			if part == leaseName {
				delete(r.heard, name)
			}
		}
	}
}

// renewed takes a lease; all tells that it was there when this authority began to look.
// Nobody's clock is compared.
func (s *session) renewed(d ledger.Document, all bool, now time.Time) {
	switch s.version {
	case d.Version:
		return
	case 0:
		s.found = all
	default:
		s.found = false
	}
	s.version, s.seen = d.Version, now
	s.lease = lease{}
	_ = json.Unmarshal(d.Value, &s.lease) // one that cannot be read has taken no state
}

// tell adds to what a gate is judged by what the others hear, and who they are.
func (r *replicas) tell(t *trust, f *roots.Facts, now time.Time) {
	if r == nil || t.state.Rotation == nil {
		return
	}
	holders := roots.HoldersOf(f.Leaves)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil || !r.listened {
		// It has just started: whom it has not heard of yet may hold the step up.
		f.Replicas = append(f.Replicas, roots.Replica{Name: handover.Replica{ID: r.id, Host: r.host}.Name(), Since: now})
	}
	live := make(map[string]bool)
	for _, s := range r.heard {
		if s.version == 0 || now.Sub(s.seen) > life {
			continue
		}
		live[s.lease.ID] = true
		taken := s.lease.Roots == t.version
		f.Replicas = append(f.Replicas, roots.Replica{
			Name: handover.Replica{ID: s.lease.ID, Host: s.lease.Host}.Name(), Taken: taken, Lacks: s.lease.Lacks, Since: s.lease.At,
		})
		for _, p := range s.parts {
			if taken && !s.found && p.Roots == t.version {
				f.Reports = append(f.Reports, t.state.Rotation.Heard(p.Told, holders, s.lease.At)...)
			}
		}
	}
	if t.state.Rotation.Step != roots.Distributing || now.Sub(t.since) > expected {
		return
	}
	for id, data := range r.known {
		if id == r.id || live[id] {
			continue
		}
		if one, err := r.parse(data, t.state); err == nil {
			f.Replicas = append(f.Replicas, roots.Replica{Name: one.Name(), Since: t.since})
		}
	}
}
