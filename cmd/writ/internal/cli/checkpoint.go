package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-mesh/writ/internal/witness"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

func checkpointCommand() *cobra.Command {
	var from sourceFlags
	var remember string
	c := &cobra.Command{
		Use:   "checkpoint [DIR]",
		Short: "Print a signed checkpoint of the authority's ledger, to be kept elsewhere",
		Long: `Print a signed note (https://c2sp.org/tlog-checkpoint) about the ledger as it is
now. Keep it on another machine, with the public key, which is in the file
ledger.pub in the authority's state directory: writ certs verify-log takes both.

With --remember the newest checkpoint is kept in a file, and each time the authority
has to prove that its log of now goes on from there. Exit code 1: it does not, which
is a contradiction, or, once, that it was restored from a backup; 2: cannot tell.`,
		Example: "  writ certs checkpoint examples/bookinfo > monday.checkpoint\n" +
			"  writ certs checkpoint --admin unix:///run/writ/ca.sock --remember /var/lib/audit/ledger.json",
		Args: anyDir,
		RunE: func(cmd *cobra.Command, args []string) error {
			source, err := from.open(cmd.Context(), args)
			if err != nil {
				return err
			}
			defer source.close()
			if remember != "" {
				return source.remember(cmd.Context(), remember, cmd.OutOrStdout())
			}
			if source.checkpoint == "" {
				return failed(fmt.Errorf("there is no ledger.checkpoint beside %s", source.name))
			}
			_, err = io.WriteString(cmd.OutOrStdout(), source.checkpoint)
			return err
		},
	}
	from.register(c)
	c.Flags().StringVar(&remember, "remember", "", "keep the newest checkpoint in this `file`, and verify that the log goes on from the one in it")
	return c
}

// remember compares the log with what a file remembers of it, and brings the file up to
// date. What contradicts is in the file too, for whoever has to judge it.
func (s *logSource) remember(ctx context.Context, path string, out io.Writer) error {
	if s.witness == nil {
		return errors.New("--remember asks an authority that runs; for a file there is writ certs verify-log --checkpoint")
	}
	seen, err := witness.Load(path)
	if err != nil {
		return err
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := s.witness.ProveContinuation(call, &capb.ProveContinuationRequest{Size: seen.Size})
	if err != nil {
		return err
	}
	now, contradiction := seen.Take(answer, time.Now())
	if err := now.Save(path); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, now); err != nil {
		return err
	}
	restored := now.Restored != nil && (seen.Restored == nil || *seen.Restored != *now.Restored)
	if contradiction != nil || now.Contradiction != nil || restored {
		return errNo
	}
	return nil
}
