package attest

import (
	"errors"
	"fmt"
)

// maxParents bounds how far up ancestors are looked at.
const maxParents = 16

// ancestors gives the executables of the process's ancestors, the parent first.
// Those that this agent may not look at are left out.
func (p *procDir) ancestors() ([]string, error) {
	var out []string
	child := p
	defer func() {
		if child != p {
			child.close()
		}
	}()
	for range maxParents {
		parent, err := child.up()
		if err != nil {
			return out, err
		}
		if parent == nil {
			break
		}
		if child != p {
			child.close()
		}
		child = parent
		if running, err := parent.executable(); err == nil {
			if name, err := parent.path(running); err == nil {
				out = append(out, name)
			}
		}
	}
	return out, nil
}

var errParentChanged = errors.New("the parent ended while it was looked at")

// up opens the parent, nil at the top. A process with the parent's id that was
// started after its child is no parent: the id was given away again.
func (p *procDir) up() (*procDir, error) {
	if p.parent <= 0 {
		return nil, nil //nolint:nilnil // see above
	}
	parent, err := openProcDir(p.parent, 0)
	if err != nil {
		err = fmt.Errorf("parent of %w", err)
	}
	now, serr := p.stat()
	if serr == nil && now.parent != p.parent {
		p.parent, serr = now.parent, errParentChanged
	}
	switch {
	case serr != nil:
		err = serr
	case err == nil && parent.start > p.start:
		err = errParentChanged
	}
	if err != nil {
		if parent != nil {
			parent.close()
		}
		return nil, err
	}
	return parent, nil
}
