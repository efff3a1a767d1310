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
		if name, err := parent.path(); err == nil {
			out = append(out, name)
		}
	}
	return out, nil
}

var errParentChanged = errors.New("the parent ended while it was looked at")

// up opens the parent, nil at the top. A process with the parent's id that was
// started after its child is no parent: the id was given away again.
func (p *procDir) up() (*procDir, error) {
	st, err := p.stat()
	if err != nil || st.parent <= 0 {
		return nil, err
	}
	parent, err := openProcDir(st.parent, 0)
	if err != nil {
		return nil, fmt.Errorf("parent of %w", err)
	}
	again, err := p.stat()
	if err != nil || again.parent != st.parent || parent.start > p.start {
		parent.close()
		return nil, errors.Join(errParentChanged, err)
	}
	return parent, nil
}
