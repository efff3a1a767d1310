package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/checkpoint"
	"github.com/writ-mesh/writ/ca/ledger/filelog"
	"github.com/writ-mesh/writ/internal/listen"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// logSource is where a log is read from.
type logSource struct {
	name string
	// each calls f with the records from the beginning on.
	each func(ctx context.Context, f func(ledger.Record) error) error
	// checkpoint is the newest one of the authority, and the key that signs it; both
	// are empty if there is none.
	checkpoint, verifier string
	// readDocuments gives those that the authority goes by, to be compared with the log;
	// nil for a file, which has no others.
	readDocuments func(ctx context.Context, from uint64) (*documentsAudit, error)
	// witness asks whether the log goes on from what was seen.
	witness capb.WitnessClient
	close   func()
}

// sourceFlags say where a log is.
type sourceFlags struct{ file, socket, state string }

func (f *sourceFlags) register(c *cobra.Command) {
	c.Flags().StringVar(&f.file, "file", "", "read this `file`, an authority's ledger.log, without asking an authority")
	c.Flags().StringVar(&f.socket, "admin", "", "ask the authority with this admin `socket`, unix:///path")
	stateFlag(c, &f.state)
}

func (f *sourceFlags) open(ctx context.Context, args []string) (*logSource, error) {
	switch {
	case f.file != "" && f.socket != "":
		return nil, errors.New("--file and --admin: name one of them")
	case f.file != "":
		return fileSource(f.file)
	}
	conn, err := f.dial(args)
	if err != nil {
		return nil, err
	}
	client := capb.NewLedgerClient(conn)
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	cp, err := client.GetCheckpoint(call, &capb.GetCheckpointRequest{})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &logSource{
		name: "the authority's ledger", checkpoint: cp.GetCheckpoint(), verifier: cp.GetVerifier(), witness: capb.NewWitnessClient(conn),
		close: func() { _ = conn.Close() }, readDocuments: func(ctx context.Context, from uint64) (*documentsAudit, error) {
			return readDocuments(ctx, client, from)
		},
		each: func(ctx context.Context, f func(ledger.Record) error) error {
			return readEntries(ctx, client, f)
		},
	}, nil
}

func (f *sourceFlags) dial(args []string) (*grpc.ClientConn, error) {
	if f.socket == "" {
		return admin(meshDir(args), f.state, "ca")
	}
	if _, ok := listen.Unix(f.socket); !ok {
		return nil, fmt.Errorf("--admin %q: want unix:///absolute/path, the authority's admin socket", f.socket)
	}
	return grpc.NewClient(f.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func readEntries(ctx context.Context, client capb.LedgerClient, f func(ledger.Record) error) error {
	ctx, cancel := context.WithCancel(ctx) // ends the stream if f wants no more
	defer cancel()
	stream, err := client.ReadEntries(ctx, &capb.ReadEntriesRequest{Documents: true})
	if err != nil {
		return err
	}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(ledger.Record{Index: e.GetIndex(), Leaf: e.GetEntry(), Values: e.GetDocuments()}); err != nil {
			return err
		}
	}
}

// fileSource reads a file; the checkpoint and its key are beside it, as the
// authority leaves them.
func fileSource(path string) (*logSource, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	s := &logSource{name: path, close: func() {}}
	for name, into := range map[string]*string{"ledger.checkpoint": &s.checkpoint, "ledger.pub": &s.verifier} {
		data, err := os.ReadFile(filepath.Join(filepath.Dir(path), name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		*into = string(data)
	}
	s.each = func(_ context.Context, f func(ledger.Record) error) error {
		_, err := filelog.Read(path, f)
		return err
	}
	return s, nil
}

// audited is the answer of `writ certs verify-log`.
type audited struct {
	OK   bool   `json:"ok"`
	Size uint64 `json:"size"`
	// Root is in hexadecimal.
	Root string `json:"root,omitempty"`
	// Checkpoints are those that the log agrees with.
	Checkpoints []agreed `json:"checkpoints"`
	// Documents is how many the authority goes by, which are those of the log; unset for
	// a file.
	Documents *int `json:"documents,omitempty"`
	// Problem is what is wrong.
	Problem string `json:"problem,omitempty"`
}

type agreed struct {
	Of   string `json:"of"`
	Log  string `json:"log"`
	Size uint64 `json:"size"`
}

func verifyLogCommand() *cobra.Command {
	var o output
	var from sourceFlags
	var kept, key string
	c := &cobra.Command{
		Use:   "verify-log [DIR]",
		Short: "Find out whether anything in the authority's ledger was altered",
		Long: `Compute the root hash of the authority's ledger from its entries, and compare it
with the authority's newest checkpoint and with one that you kept. The ledger is
that of a running mesh, of any authority (--admin), or a file (--file), beside
which the checkpoint and its public key are looked for.

A checkpoint is a small text that is signed; writ certs checkpoint prints one. Who
keeps it, and the public key, on another machine learns of every later change to
the entries that it is about, whoever made it.

Of an authority that runs, the documents that it goes by (revocations,
registrations, roots ...) are compared with those that the log makes, too.`,
		Example: "  writ certs verify-log examples/bookinfo\n  writ certs verify-log --file /var/lib/writ/ca/ledger.log --checkpoint monday.checkpoint --key ledger.pub",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			source, err := from.open(cmd.Context(), args)
			if err != nil {
				return err
			}
			defer source.close()
			if err := source.useKey(key); err != nil {
				return err
			}
			answer, err := source.verify(cmd.Context(), kept)
			if err != nil {
				return err
			}
			if err := o.print(cmd.OutOrStdout(), answer, func(w io.Writer) error { return answer.print(w, source.name) }); err != nil {
				return err
			}
			if !answer.OK {
				return errNo
			}
			return nil
		},
	}
	o.register(c)
	from.register(c)
	c.Flags().StringVar(&kept, "checkpoint", "", "a checkpoint `file` that was kept earlier")
	c.Flags().StringVar(&key, "key", "", "the `file` with the public key of the ledger, if not the authority's own word for it")
	return c
}

// useKey has checkpoints verified with the key in a file.
func (s *logSource) useKey(path string) error {
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	s.verifier = string(data)
	return nil
}

// verify reads the whole log. Its error is why that cannot be told.
func (s *logSource) verify(ctx context.Context, kept string) (*audited, error) {
	answer := &audited{Checkpoints: []agreed{}}
	var audit checkpoint.Audit
	texts := []struct{ of, text string }{{"the authority's newest", s.checkpoint}}
	if kept != "" {
		data, err := os.ReadFile(kept)
		if err != nil {
			return nil, err
		}
		texts = append(texts, struct{ of, text string }{kept, string(data)})
	}
	for _, t := range texts {
		if t.text == "" {
			continue
		}
		cp, err := checkpoint.Open([]byte(t.text), s.verifier)
		if err != nil {
			answer.Problem = fmt.Sprintf("%s: %v", t.of, err)
			return answer, nil
		}
		audit.Known = append(audit.Known, cp.Head)
		answer.Checkpoints = append(answer.Checkpoints, agreed{Of: t.of, Log: cp.Log, Size: cp.Size})
	}
	if err := s.audit(ctx, &audit, answer); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		answer.Problem, answer.Checkpoints, answer.Documents = err.Error(), []agreed{}, nil
		return answer, nil
	}
	answer.OK = true
	return answer, nil
}

// audit reads the whole log, and compares it with what is known of it and with the
// documents that the authority goes by.
func (s *logSource) audit(ctx context.Context, known *checkpoint.Audit, answer *audited) error {
	var documents *documentsAudit
	if s.readDocuments != nil {
		// The log has at least what its checkpoint is about.
		cp, err := checkpoint.Open([]byte(s.checkpoint), s.verifier)
		if err == nil {
			documents, err = s.readDocuments(ctx, cp.Size)
		}
		if err != nil {
			return err
		}
		n := len(documents.live)
		answer.Documents = &n
	}
	err := s.each(ctx, func(r ledger.Record) error {
		if err := known.Add(r); err != nil {
			return err
		}
		answer.Size = r.Index + 1
		if documents == nil {
			return nil
		}
		return documents.add(r)
	})
	if err != nil {
		return err
	}
	head, err := known.End()
	if err != nil {
		return err
	}
	answer.Root = fmt.Sprintf("%x", head.Root)
	if documents == nil {
		return nil
	}
	return documents.end()
}

func (a *audited) print(out io.Writer, name string) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "ledger\t%s\n", name)
	fmt.Fprintf(w, "entries\t%d\n", a.Size)
	if a.OK {
		fmt.Fprintf(w, "root\t%s\n", a.Root)
	}
	for _, c := range a.Checkpoints {
		fmt.Fprintf(w, "checkpoint\t%s: the first %d entries are those that %s signed\n", c.Of, c.Size, c.Log)
	}
	if a.Documents != nil {
		fmt.Fprintf(w, "documents\t%d: those that the authority goes by are those of the log\n", *a.Documents)
	}
	switch {
	case !a.OK:
		fmt.Fprintf(w, "NOT OK\t%s\n", a.Problem)
	case len(a.Checkpoints) == 0:
		fmt.Fprintf(w, "OK\tby its checksums; there is no checkpoint to compare it with, so somebody may have altered it and computed them anew\n")
	default:
		fmt.Fprintf(w, "OK\tnothing was altered, removed or put in between\n")
	}
	return w.Flush()
}

// exported is a line of `writ certs export -o json`.
type exported struct {
	Index uint64          `json:"index"`
	Entry json.RawMessage `json:"entry"`
}

func exportCommand() *cobra.Command {
	var o output
	var from sourceFlags
	c := &cobra.Command{
		Use:   "export [DIR]",
		Short: "Print every entry of the authority's ledger, oldest first",
		Long: `Print every entry of the authority's ledger, oldest first: what was issued,
refused, registered, rotated and revoked, when, and on whose request. With -o json
each is a line of JSON whose "entry" is the content of its leaf in the hash tree.`,
		Example: "  writ certs export examples/bookinfo -o json | jq 'select(.entry.kind == \"refused\")'",
		Args:    anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			source, err := from.open(cmd.Context(), args)
			if err != nil {
				return err
			}
			defer source.close()
			line := exportTable
			switch o {
			case "json":
				line = exportJSON
			case "table":
			default:
				return fmt.Errorf("-o %q: want table or json", string(o))
			}
			return source.each(cmd.Context(), line(cmd.OutOrStdout()))
		},
	}
	o.register(c)
	from.register(c)
	return c
}

func exportJSON(w io.Writer) func(ledger.Record) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return func(r ledger.Record) error { return enc.Encode(exported{r.Index, r.Leaf}) }
}

func exportTable(w io.Writer) func(ledger.Record) error {
	return func(r ledger.Record) error {
		e, err := r.Entry()
		if err != nil {
			return err
		}
		what := []string{utc(e.Time), string(e.Kind)}
		for _, s := range []string{e.Request, e.Subject, e.Serial} {
			if s != "" {
				what = append(what, s)
			}
		}
		if e.Actor != "" {
			what = append(what, "for "+e.Actor)
		}
		if text := e.Detail["text"]; text != "" {
			what = append(what, fmt.Sprintf("%q", text))
		}
		_, err = fmt.Fprintf(w, "%d  %s\n", r.Index, strings.Join(what, "  "))
		return err
	}
}
