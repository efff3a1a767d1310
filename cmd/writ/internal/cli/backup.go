package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-mesh/writ/ca/backup"
	"github.com/writ-mesh/writ/ca/ledger"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

func backupCommand() *cobra.Command {
	var dir, socket string
	c := &cobra.Command{
		Use:   "backup FILE",
		Short: "Copy an authority's keys and ledger into one file",
		Long: `Copy the state directory of an authority, which may run meanwhile, into one file of
mode 0600, in one step. It holds the root key: whoever reads it is the authority. An
authority whose ledger is in PostgreSQL has its keys here, and the database wants a
backup of its own; that of one in etcd is read over the admin socket (--admin).`,
		Example: "  writ certs backup --ca-state /var/lib/writ/ca /backup/ca-monday.tar\n  writ certs backup --ca-state /var/lib/writ/ca --admin unix:///run/writ/ca.sock /backup/ca-monday.tar",
		Args:    arguments(1, 1, "one file that is not there yet"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := writeBackup(cmd.Context(), dir, socket, args[0]); err != nil {
				return failed(err)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is in %s\n", dir, args[0])
			return err
		},
	}
	c.Flags().StringVar(&dir, "ca-state", "", "the state `directory` of the authority (that of writ up is DIR/.writ/ca)")
	c.Flags().StringVar(&socket, "admin", "", "read the ledger from the authority with this admin `socket`, unix:///path")
	_ = c.MarkFlagRequired("ca-state") // the flag is there
	return c
}

// writeBackup makes the file whole or not at all.
func writeBackup(ctx context.Context, dir, socket, file string) error {
	if _, err := os.Lstat(file); err == nil {
		return fmt.Errorf("%s is there already; name a new file", file)
	}
	staging, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*") // mode 0600
	if err != nil {
		return err
	}
	if socket == "" {
		err = backup.Write(dir, staging)
	} else {
		err = backupOver(ctx, socket, dir, staging)
	}
	err = errors.Join(err, staging.Sync(), staging.Close())
	if err == nil {
		err = os.Rename(staging.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(staging.Name()))
	}
	return nil
}

// backupOver writes a backup with the ledger as the authority gives it.
func backupOver(ctx context.Context, socket, dir string, to *os.File) error {
	conn, err := (&sourceFlags{socket: socket}).dial(nil)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // read only
	client := capb.NewLedgerClient(conn)
	each := func(f func(ledger.Record) error) error { return readEntries(ctx, client, f) }
	return backup.WriteWithLedger(dir, each, to.Name()+".ledger", to)
}

func restoreCommand() *cobra.Command {
	var o output
	var dir, newer string
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make an authority's state directory out of a backup",
		Long: `Make the state directory of an authority, which must be empty or not there, out of a
backup. What the authority issued after the backup is not in the ledger then: the time
between is written into it, and each certificate of that time is written down when its
owner calls the authority, as requested by "unrecorded" (writ certs ls --live -o json).
What was revoked in that time is revoked again as soon as a node agent or service
calls that has the list; compare writ certs revocations with what you know.

If the file of the ledger can still be read, name it with --ledger: if it goes on from
the one in the backup it takes its place, and nothing is lost.`,
		Example: "  writ certs restore --ca-state /var/lib/writ/ca /backup/ca-monday.tar\n" +
			"  writ certs restore --ca-state /var/lib/writ/ca --ledger /broken/ledger.log /backup/ca-monday.tar",
		Args: arguments(1, 1, "one backup"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = in.Close() }() // read only
			w, err := backup.Restore(cmd.Context(), in, dir, newer, time.Now())
			if err != nil {
				return failed(err)
			}
			return o.print(cmd.OutOrStdout(), w, func(out io.Writer) error {
				if w == nil {
					_, err := fmt.Fprintf(out, "%s is restored; the backup has no ledger, which is in a database\n", dir)
					return err
				}
				_, err := fmt.Fprintf(out, "%s is restored\nwhat was issued and revoked from %s to %s UTC is not in the ledger\n", dir, utc(w.From), utc(w.To))
				return err
			})
		},
	}
	o.register(c)
	c.Flags().StringVar(&dir, "ca-state", "", "the state `directory` to make")
	c.Flags().StringVar(&newer, "ledger", "", "a later `file` of the ledger than the one in the backup, to go on with")
	_ = c.MarkFlagRequired("ca-state") // the flag is there
	return c
}
